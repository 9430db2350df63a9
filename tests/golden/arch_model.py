"""Tiny random transformers models in double precision, and how close their decisions are."""
import contextlib
import functools

import numpy as np
import torch
import transformers

transformers.logging.set_verbosity_error()

GAIN = {"embed_tokens": 1.0, "lm_head": 3.0, "q_proj": 1.4, "k_proj": 1.4, "q_b_proj": 1.4, "kv_b_proj": 1.4,
        "gate.weight": 1.6, "router.weight": 1.6, "down_proj": 2.0, "output_linear": 2.0, "o_proj": 1.2}
BIAS = {"sinks": 1.0, "e_score_correction_bias": 0.15, "router.bias": 0.5, "lm_head.bias": 0.7, "norm.bias": 0.2}


@contextlib.contextmanager
def double_precision():
    """Inside, everything transformers asks to have in float32 is float64: norms, softmax, RoPE angles too."""
    saved = torch.float32, torch.float, torch.Tensor.float, torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.float32 = torch.float = torch.float64
    torch.Tensor.float = torch.Tensor.double
    try:
        yield
    finally:
        torch.float32, torch.float, torch.Tensor.float, default = saved
        torch.set_default_dtype(default)


def pick(table, name, otherwise):
    return next((v for k, v in table.items() if k in name), otherwise)


def draw(rng, name, shape, hf, tied):
    """One tensor's float32 values: norms near 1, matrices scaled by their fan-in, nothing zero."""
    if name.endswith("weight") and "norm" in name:
        return 1 + rng.uniform(-0.3, 0.3, shape)
    if len(shape) == 1 or "bias" in name:
        return rng.normal(0, pick(BIAS, name, 0.3), shape)
    if "embed_tokens" in name:
        return rng.normal(0, 0.4 if tied else 1, shape)
    fan_in = shape[-2] if hf == "GptOss" and "experts" in name else shape[-1]
    gain = pick(GAIN, name, 1.0)
    if hf.startswith("Granite") and "lm_head" in name:
        gain *= 3
    return rng.normal(0, gain / fan_in ** 0.5, shape)


def build(row, seed, rope=None, double=True):
    """The model of a row with the weights of a seed; rope overrides rope_parameters, weights unchanged.
    With double False it is transformers as it comes, in float32."""
    config = dict(row["config"])
    config["rope_parameters"] = dict(config["rope_parameters"], **(rope or {}))
    cls = row["hf"]
    cfg = getattr(transformers, cls + "Config")(**config, attn_implementation="eager")
    cfg._experts_implementation = "eager"
    with double_precision() if double else contextlib.nullcontext():
        model = getattr(transformers, cls + "ForCausalLM")(cfg).eval()
        rng = np.random.default_rng([seed, *cls.encode()])
        state = [(k, v) for k, v in model.named_parameters()]
        state += [(k, v) for k, v in model.named_buffers() if "e_score" in k]
        with torch.no_grad():
            for name, tensor in sorted(state):
                values = draw(rng, name, tuple(tensor.shape), cls, cfg.tie_word_embeddings).astype(np.float32)
                tensor.copy_(torch.from_numpy(values))
        if cls == "Phimoe":
            # transformers 5.23 forgets to tell the length to longrope and so never takes the long factors
            rotary = model.model.rotary_emb
            rotary.rope_init_fn = functools.partial(rotary.rope_init_fn, seq_len=1 << 20)
    return model


def logits(model, tokens):
    """float64 logits after every token of one sequence, without a cache."""
    double = model.dtype == torch.float64
    with double_precision() if double else contextlib.nullcontext(), torch.no_grad():
        return model(torch.tensor([tokens]), use_cache=False).logits[0].double()


def top_gap(values, k):
    """Smallest distance, over rows, between the k-th and the (k+1)-th largest."""
    s = torch.sort(values, dim=-1, descending=True).values
    return (s[:, k - 1] - s[:, k]).min().item()


def sparsemixer_gap(l, eps):
    """The two argmax decisions, and how close any logit comes to the edge of the 2 eps mask."""
    gap = min(top_gap(l, 1), top_gap(l, 2))
    s, order = torch.sort(l, dim=-1, descending=True)
    for n in range(2):
        best = s[:, n:n + 1]
        rest = torch.gather(l, 1, order[:, n + 1:])
        ratio = (best - rest) / torch.maximum(rest.abs(), best)
        gap = min(gap, (ratio - 2 * eps).abs().min().item())
    return gap


def grouped_gap(router, s, n_best):
    """The choice of groups, each worth the sum of its n_best selection values, and of experts in what stays."""
    groups = s.view(len(s), router.num_group, -1)
    worth = groups.topk(n_best, dim=-1).values.sum(-1)
    keep = torch.zeros_like(worth).scatter_(1, worth.topk(router.topk_group).indices, 1).bool()
    s = torch.where(keep[:, :, None], groups, torch.tensor(-1e9)).reshape(len(s), -1)
    return min(top_gap(worth, router.topk_group), top_gap(s, router.top_k))


def decision_gap(cls, router, l):
    """How far the routing decisions that router logits l lead to are from going another way."""
    l = l.double()
    if cls == "Phimoe":
        return sparsemixer_gap(l, router.router_jitter_noise)
    k = router.top_k
    if cls in ("GptOss", "GraniteMoe", "GraniteMoeShared"):
        return top_gap(l, k)
    grouped = (getattr(router, "num_group", None) or 1) > 1
    if cls in ("DeepseekV3", "Glm4Moe"):
        s = l.sigmoid() + router.e_score_correction_bias
        return grouped_gap(router, s, 2) if grouped else top_gap(s, k)
    s = l.softmax(-1)
    return grouped_gap(router, s, 1) if grouped else top_gap(s, k)


class RouterTap:
    """Watches every router of a model; .gap is the smallest decision gap seen since reset()."""

    def __init__(self, model, cls):
        self.cls = cls
        self.routers = [m for _, m in model.named_modules() if type(m).__name__.lower().endswith("router")]
        for m in self.routers:
            m.register_forward_hook(self.see)
        self.reset()

    def reset(self):
        self.gap = float("inf")
        self.used = set()

    def see(self, router, args, out):
        self.gap = min(self.gap, decision_gap(self.cls, router, out[0]))
        self.used |= {(id(router), int(e)) for e in out[2].flatten()}
