#!/usr/bin/env python3
"""Weights of the models that tests/corpus/config/*.json describe, by the model classes of the
transformers library, made without memory (device meta). The numbers are in tests/t_config.c.
Needs torch and transformers; about a minute."""
import glob
import json
import os

import torch
import transformers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

transformers.logging.set_verbosity_error()
here = os.path.dirname(os.path.abspath(__file__))
for path in sorted(glob.glob(os.path.join(here, "../corpus/config/*.json"))):
    name = os.path.basename(path)[:-len(".json")]
    with open(path) as f:
        config = json.load(f)
    config = config.get("text_config", config)
    config.pop("quantization_config", None)
    if config["model_type"] not in CONFIG_MAPPING:
        print(f"{name}: {config['model_type']} is not in transformers")
        continue
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            CONFIG_MAPPING[config["model_type"]].from_dict(config))
    weights = {id(p): p.numel() for p in model.parameters()}    # tied ones once
    print(f"{name}: {sum(weights.values()) * 1e-9:.4f}", flush=True)
