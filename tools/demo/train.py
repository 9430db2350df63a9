#!/usr/bin/env python3
"""Train, export and evaluate the bundled demo model: a small Mixture-of-Experts that writes verse.

Data      tests/data/tinyshakespeare.txt (public domain). The last 10 % is held out, see split_text().
Tokenizer byte-level BPE, trained here on the training part only, GPT-2's split pattern.
Model     the `qwen3moe` layout: RMSNorm, grouped-query attention with per-head QK-norm and rotate-half
          rope, softmax router over all experts, top-k with normalised weights, SwiGLU experts, no shared
          expert, no bias, output head tied to the embedding.
Export    GGUF: Q8_0 matrices, F32 norms and router.
Needs     torch, numpy, tokenizers, gguf (PyPI; development only, the C program needs none of them).

    train.py train  --work DIR [--config bard]        train; DIR gets checkpoints and loss.csv
    train.py train  --work DIR --resume               go on from DIR/last.pt
    train.py export --work DIR -o models/NAME.gguf    DIR/best.pt to GGUF
    train.py eval   -m models/NAME.gguf [-o tests/golden/bundled.json]
                                                      perplexity of the exported file, dequantised to float32
    train.py sample -m models/NAME.gguf -p "ROMEO:"   text from the exported file, through PyTorch
    train.py llama  -m models/NAME.gguf               the same through llama.cpp (package llama-cpp-python)
    train.py split  -o tests/data/tinyshakespeare-heldout.txt

The perplexity protocol (eval) that any other program can repeat:
    tokenise the whole held-out text at once, without a BOS token; cut the ids into consecutive windows of
    N = 256 that do not overlap; a last, shorter window counts if it has at least 2 tokens. Each window
    starts with an empty context. The first token of a window is not scored, every other token is:
    perplexity = exp(-sum of log p / number of scored tokens).
"""
import argparse
import csv
import dataclasses
import hashlib
import json
import math
import os
import sys
import time

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
TEXT = os.path.join(ROOT, "tests", "data", "tinyshakespeare.txt")
EOT = "<|endoftext|>"   # id 0: put before a speech as BOS; no target of the training, so never generated
WINDOW = 256            # tokens per perplexity window


@dataclasses.dataclass
class Config:
    """Every row length of a quantised matrix is a multiple of 32, the block of Q8_0."""
    name: str
    vocab: int = 1024
    layers: int = 6
    d_model: int = 256
    heads: int = 8
    kv_heads: int = 2
    head_dim: int = 32
    experts: int = 32
    top_k: int = 4
    d_expert: int = 32
    context: int = 512      # longest training sequence, and context_length of the file
    rope_base: float = 10000.0
    eps: float = 1e-6


CONFIGS = {
    "bard": Config("bard"),                                               # bundled with the repository
    "big-router": Config("big-router", experts=64, top_k=8),   # for routing measurements
    "tiny": Config("tiny", layers=2, d_model=64, heads=2, kv_heads=1, experts=4, top_k=2),
}


# ---------------------------------------------------------------------------------------------------
# Text and tokenizer

def split_text(path=TEXT):
    """(training bytes, held-out bytes): the cut is the first line start at or after 90 % of the bytes."""
    data = open(path, "rb").read()
    at = data.index(b"\n", len(data) * 9 // 10 - 1) + 1
    return data[:at], data[at:]


def train_tokenizer(text, vocab):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    tok = Tokenizer(models.BPE())
    # ByteLevel's own regular expression is GPT-2's; tokenizer.ggml.pre = "gpt-2" names the same.
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tok.decoder = decoders.ByteLevel()
    tok.train_from_iterator([text.decode()], trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=[EOT], show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
    assert tok.get_vocab_size() == vocab
    return tok


def encode(tok, data):
    return np.array(tok.encode(data.decode(), add_special_tokens=False).ids, dtype=np.int64)


class Windows:
    """Random training windows. Half of them start at a speech and carry the BOS token in front, so that
    the model knows what a text begins with; the others start anywhere."""

    def __init__(self, tok, data, longest, seed):
        self.ids = encode(tok, data)
        self.rng = np.random.default_rng(seed)
        # A speech starts after an empty line: after a token whose text ends in two line feeds, which
        # GPT-2's pattern may also write as two tokens of one line feed each.
        text = [tok.decode([i]) for i in range(tok.get_vocab_size())]
        feed = np.array([len(t) - len(t.rstrip("\n")) for t in text])
        run = feed[self.ids]
        start = np.flatnonzero((run[1:] >= 2) | ((run[1:] == 1) & (run[:-1] == 1))) + 2
        self.starts = np.append(start[start < len(self.ids) - longest], 0)
        self.eot = tok.token_to_id(EOT)

    def batch(self, n, length):
        """Inputs and targets, [n][length]."""
        rows = []
        for i in range(n):
            if i % 2 == 0:
                at = self.starts[self.rng.integers(len(self.starts))]
                rows.append(np.append(self.eot, self.ids[at:at + length]))
            else:
                at = self.rng.integers(len(self.ids) - length)
                rows.append(self.ids[at:at + length + 1])
        t = torch.from_numpy(np.stack(rows))
        return t[:, :-1], t[:, 1:]


# ---------------------------------------------------------------------------------------------------
# Model

def rope_table(cfg, n, base):
    """cos and sin, [n][head_dim]; NEOX order: dimension i turns with dimension i + head_dim / 2."""
    half = cfg.head_dim // 2
    freq = base ** (-torch.arange(half, dtype=torch.float64) / half)
    angle = torch.outer(torch.arange(n, dtype=torch.float64), freq).repeat(1, 2)
    return angle.cos().float(), angle.sin().float()


def rotate(x, cos, sin):
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-b, a), dim=-1) * sin


class Attention(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        self.norm = nn.Parameter(torch.ones(cfg.d_model))
        self.q_norm = nn.Parameter(torch.ones(cfg.head_dim))
        self.k_norm = nn.Parameter(torch.ones(cfg.head_dim))
        self.q = nn.Linear(cfg.d_model, cfg.heads * cfg.head_dim, bias=False)
        self.k = nn.Linear(cfg.d_model, cfg.kv_heads * cfg.head_dim, bias=False)
        self.v = nn.Linear(cfg.d_model, cfg.kv_heads * cfg.head_dim, bias=False)
        self.o = nn.Linear(cfg.heads * cfg.head_dim, cfg.d_model, bias=False)

    def forward(self, x, cos, sin):
        cfg, (b, t, _) = self.cfg, x.shape
        x = F.rms_norm(x, (cfg.d_model,), self.norm, cfg.eps)
        q = self.q(x).view(b, t, cfg.heads, cfg.head_dim)
        k = self.k(x).view(b, t, cfg.kv_heads, cfg.head_dim)
        v = self.v(x).view(b, t, cfg.kv_heads, cfg.head_dim).transpose(1, 2)
        q = rotate(F.rms_norm(q, (cfg.head_dim,), self.q_norm, cfg.eps).transpose(1, 2), cos, sin)
        k = rotate(F.rms_norm(k, (cfg.head_dim,), self.k_norm, cfg.eps).transpose(1, 2), cos, sin)
        group = cfg.heads // cfg.kv_heads
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        y = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, is_causal=True)
        return self.o(y.transpose(1, 2).reshape(b, t, -1))


class Experts(nn.Module):
    """Router and experts. Rows are sorted by expert, so that each expert is three plain matrix products
    on its own rows and no row is dropped or padded."""

    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        self.norm = nn.Parameter(torch.ones(cfg.d_model))
        self.router = nn.Parameter(torch.empty(cfg.experts, cfg.d_model))
        self.gate_up = nn.Parameter(torch.empty(cfg.experts, 2 * cfg.d_expert, cfg.d_model))
        self.down = nn.Parameter(torch.empty(cfg.experts, cfg.d_model, cfg.d_expert))

    def forward(self, x):
        """Output, then what the auxiliary losses and statistics need: (balance loss, z loss, load)."""
        cfg, shape = self.cfg, x.shape
        x = F.rms_norm(x, (cfg.d_model,), self.norm, cfg.eps).reshape(-1, cfg.d_model)
        with torch.autocast("cpu", enabled=False):          # the choice of experts stays in float32
            logits = x.float() @ self.router.t()
            prob = logits.softmax(dim=-1)
        weight, index = prob.topk(cfg.top_k, dim=-1)
        weight = weight / weight.sum(dim=-1, keepdim=True)

        expert = index.flatten()
        order = expert.argsort(stable=True)
        row = order // cfg.top_k
        count = torch.bincount(expert, minlength=cfg.experts)
        parts = x[row].split(count.tolist())
        out = []
        for part, gate_up, down in zip(parts, self.gate_up.unbind(), self.down.unbind()):
            gate, up = F.linear(part, gate_up).chunk(2, dim=-1)
            out.append(F.linear(F.silu(gate) * up, down))
        y = torch.cat(out) * weight.flatten()[order, None]
        y = torch.zeros_like(x, dtype=y.dtype).index_add(0, row, y)

        # Load balance as in Switch Transformers, eq. 4: experts * sum(share of rows * mean probability),
        # 1 when balanced. The z loss keeps router logits small (ST-MoE).
        share = count / expert.numel()
        balance = cfg.experts * (share * prob.mean(dim=0)).sum()
        return y.view(shape), (balance, logits.logsumexp(dim=-1).square().mean(), share)


class Model(nn.Module):
    def __init__(self, cfg, dropout=0.0):
        super().__init__()
        self.cfg = cfg
        self.embed = nn.Parameter(torch.empty(cfg.vocab, cfg.d_model))
        self.attn = nn.ModuleList(Attention(cfg) for _ in range(cfg.layers))
        self.ffn = nn.ModuleList(Experts(cfg) for _ in range(cfg.layers))
        self.norm = nn.Parameter(torch.ones(cfg.d_model))
        self.drop = nn.Dropout(dropout)
        cos, sin = rope_table(cfg, cfg.context, cfg.rope_base)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        for name, p in self.named_parameters():
            if p.dim() > 1:
                into_residual = name.endswith((".o.weight", ".down"))
                nn.init.normal_(p, std=0.02 / (math.sqrt(2 * cfg.layers) if into_residual else 1))

    def forward(self, ids):
        """Logits [batch][time][vocab] and one tuple of router terms per layer."""
        t = ids.shape[1]
        x, aux = self.drop(F.embedding(ids, self.embed)), []
        for attn, ffn in zip(self.attn, self.ffn):
            x = x + self.drop(attn(x, self.cos[:t], self.sin[:t]))
            y, terms = ffn(x)
            x = x + self.drop(y)
            aux.append(terms)
        return F.linear(F.rms_norm(x, (self.cfg.d_model,), self.norm, self.cfg.eps), self.embed), aux


# ---------------------------------------------------------------------------------------------------
# Perplexity and samples

@torch.no_grad()
def evaluate(model, ids, window=WINDOW):
    """(sum of -log p, scored tokens, load [layers][experts]) by the protocol at the top of this file."""
    was, nll, scored = model.training, 0.0, 0
    model.eval()
    load = torch.zeros(model.cfg.layers, model.cfg.experts, dtype=torch.float64)
    ids = torch.from_numpy(ids)
    full = len(ids) // window * window
    for chunk in list(ids[:full].view(-1, window).split(16)) + [ids[None, full:]]:
        if chunk.shape[1] < 2:
            continue
        logits, aux = model(chunk)
        nll += F.cross_entropy(logits[:, :-1].float().flatten(0, 1), chunk[:, 1:].flatten(),
                               reduction="none").double().sum().item()
        scored += chunk[:, 1:].numel()
        load += torch.stack([a[2] for a in aux]) * chunk.numel()
    model.train(was)
    return nll, scored, load / len(ids)


def scored_bytes(tok, ids, window=WINDOW):
    """Bytes of text behind the scored tokens: what bits per character divide by."""
    size = [0 if i == tok.token_to_id(EOT) else len(tok.id_to_token(i)) for i in range(tok.get_vocab_size())]
    total = np.array(size)[ids]      # one character of a byte-level token is one byte
    return int(total.sum() - total[::window].sum())


@torch.no_grad()
def generate(model, tok, prompt, n, temperature=0.8, top_k=40, seed=1):
    """Ids of BOS + prompt + n more, and the smallest gap between the two best logits on the way."""
    model.eval()
    rng = torch.Generator().manual_seed(seed)
    ids = [tok.token_to_id(EOT)] + tok.encode(prompt, add_special_tokens=False).ids
    least = math.inf
    for _ in range(n):
        logits = model(torch.tensor([ids[-model.cfg.context:]]))[0][0, -1].float()
        best, which = logits.topk(top_k)
        least = min(least, (best[0] - best[1]).item())
        pick = 0 if temperature == 0 else torch.multinomial((best / temperature).softmax(0), 1, generator=rng)
        ids.append(int(which[pick]))
    return ids, least


# ---------------------------------------------------------------------------------------------------
# Training

def learning_rate(step, args):
    """Linear warm-up, then linear to a twentieth of the peak."""
    if step < args.warmup:
        return args.lr * (step + 1) / args.warmup
    return args.lr * max(0.05, 1 - (step - args.warmup) / max(1, args.steps - args.warmup))


def save(path, **what):
    torch.save(what, path + ".part")
    os.replace(path + ".part", path)


def cmd_train(args):
    cfg = CONFIGS[args.config]
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    os.makedirs(args.work, exist_ok=True)
    path = {name: os.path.join(args.work, name) for name in ("last.pt", "best.pt", "loss.csv", "tokenizer.json")}

    train_text, held_text = split_text()
    tok = train_tokenizer(train_text, cfg.vocab)
    tok.save(path["tokenizer.json"])
    windows = Windows(tok, train_text, cfg.context, args.seed)
    held = encode(tok, held_text)
    held_bytes = scored_bytes(tok, held)

    model = Model(cfg, args.dropout)
    average = Model(cfg)        # exponential moving average of the weights: what is evaluated and kept
    average.load_state_dict(model.state_dict())
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": args.weight_decay},
                                   {"params": vectors, "weight_decay": 0.0}],
                                  lr=args.lr, betas=(0.9, 0.98), fused=True)
    start, seconds, best = 0, 0.0, math.inf
    if args.resume:
        state = torch.load(path["last.pt"], weights_only=False)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        windows.rng.bit_generator.state = state["windows"]
        torch.set_rng_state(state["torch"])
        start, seconds, best = state["step"], state["seconds"], state["best"]
    params = sum(p.numel() for p in model.parameters())
    print(f"{params} parameters; {len(windows.ids)} training tokens, {len(held)} held out; "
          f"{len(train_text) / len(windows.ids):.3f} characters per token", flush=True)

    log = open(path["loss.csv"], "a" if args.resume else "w", newline="")
    table = csv.writer(log)
    if not args.resume:
        table.writerow(["step", "seconds", "epochs", "lr", "train_loss", "heldout_loss", "heldout_ppl",
                        "heldout_bits_per_char", "busiest_expert_share", "idlest_expert_share"])
    since, began, recent, stale = time.time(), time.time(), [], 0
    for step in range(start, args.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args)
        # Most steps use half the context, since attention costs less there; every fourth the whole, so that
        # all positions are trained. The number of tokens per step stays the same.
        whole = step % 4 == 3
        ids, target = windows.batch(args.batch // 2 if whole else args.batch,
                                    cfg.context if whole else cfg.context // 2)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=args.bf16):
            logits, aux = model(ids)
        loss = F.cross_entropy(logits.float().flatten(0, 1), target.flatten())
        balance = torch.stack([a[0] for a in aux]).mean()
        z = torch.stack([a[1] for a in aux]).mean()
        (loss + args.balance * balance + args.z_loss * z).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():       # the average follows quickly at first, over the last 1 / (1 - ema) steps later
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()),
                                 1 - min(args.ema, (step + 1) / (step + 10)))
        recent.append(loss.item())

        done = step + 1
        if done % args.every and done != args.steps:
            continue
        seconds, since = seconds + time.time() - since, time.time()
        nll, scored, load = evaluate(average, held)
        mean, kept = nll / scored, nll < best
        table.writerow([done, round(seconds), round(done * args.batch * (cfg.context // 2) / len(windows.ids), 2),
                        f"{learning_rate(step, args):.2e}", f"{np.mean(recent):.4f}", f"{mean:.4f}",
                        f"{math.exp(mean):.2f}", f"{nll / math.log(2) / held_bytes:.4f}",
                        f"{load.max():.4f}", f"{load.min():.4f}"])
        log.flush()
        print(f"step {done} {seconds:.0f} s train {np.mean(recent):.4f} held-out {mean:.4f} "
              f"ppl {math.exp(mean):.2f} bits/char {nll / math.log(2) / held_bytes:.4f}"
              f"{' *' if kept else ''}", flush=True)
        recent, stale = [], 0 if kept else stale + 1
        if kept:
            best = nll
            save(path["best.pt"], config=dataclasses.asdict(cfg), average=average.state_dict(), step=done,
                 seconds=seconds, options=vars(args))
        save(path["last.pt"], model=model.state_dict(), average=average.state_dict(),
             optimizer=optimizer.state_dict(), windows=windows.rng.bit_generator.state,
             torch=torch.get_rng_state(), step=done, seconds=seconds, best=best)
        if stale >= args.patience:
            print(f"no better for {stale} evaluations: stopping")
            break
        if args.minutes and time.time() - began > 60 * args.minutes:
            print("time is up: stopping")
            break


# ---------------------------------------------------------------------------------------------------
# GGUF

def cmd_export(args):
    import gguf
    from tokenizers import Tokenizer
    state = torch.load(os.path.join(args.work, "best.pt"), weights_only=False)
    cfg = Config(**state["config"])
    weights = {k: v.float().numpy() for k, v in state["average"].items()}
    tok = Tokenizer.from_file(os.path.join(args.work, "tokenizer.json"))
    bpe = json.loads(tok.to_str())["model"]

    out = gguf.GGUFWriter(args.output + ".part", "qwen3moe")
    out.add_name(f"Sluice {cfg.name.capitalize()} MoE")
    out.add_description("A small Mixture-of-Experts language model trained on tiny Shakespeare; writes verse.")
    out.add_license("Apache-2.0")
    out.add_languages(["en"])
    out.add_tags(["text-generation", "mixture-of-experts", "demo"])
    out.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    out.add_quantization_version(gguf.GGML_QUANT_VERSION)
    out.add_context_length(cfg.context)
    out.add_embedding_length(cfg.d_model)
    out.add_block_count(cfg.layers)
    out.add_feed_forward_length(cfg.top_k * cfg.d_expert)   # no dense layer has one; here the active width
    out.add_head_count(cfg.heads)
    out.add_head_count_kv(cfg.kv_heads)
    out.add_key_length(cfg.head_dim)
    out.add_value_length(cfg.head_dim)
    out.add_rope_dimension_count(cfg.head_dim)
    out.add_rope_freq_base(cfg.rope_base)
    out.add_layer_norm_rms_eps(cfg.eps)
    out.add_expert_count(cfg.experts)
    out.add_expert_used_count(cfg.top_k)
    out.add_expert_feed_forward_length(cfg.d_expert)

    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("gpt-2")
    eot = tok.token_to_id(EOT)
    out.add_token_list([tok.id_to_token(i) for i in range(cfg.vocab)])
    out.add_token_types([gguf.TokenType.CONTROL if i == eot else gguf.TokenType.NORMAL for i in range(cfg.vocab)])
    out.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in bpe["merges"]])
    out.add_bos_token_id(eot)
    out.add_eos_token_id(eot)
    out.add_add_bos_token(True)     # half of the training windows began so
    out.add_add_eos_token(False)

    def put(name, data, quantise):
        data = np.ascontiguousarray(data, dtype=np.float32)
        kind = gguf.GGMLQuantizationType.Q8_0 if quantise else gguf.GGMLQuantizationType.F32
        out.add_tensor(name, gguf.quants.quantize(data, kind) if quantise else data, raw_dtype=kind)

    put("token_embd.weight", weights["embed"], True)
    for i in range(cfg.layers):
        attn, ffn, blk = f"attn.{i}.", f"ffn.{i}.", f"blk.{i}."
        put(blk + "attn_norm.weight", weights[attn + "norm"], False)
        for name in "qkv":
            put(f"{blk}attn_{name}.weight", weights[f"{attn}{name}.weight"], True)
        put(blk + "attn_q_norm.weight", weights[attn + "q_norm"], False)
        put(blk + "attn_k_norm.weight", weights[attn + "k_norm"], False)
        put(blk + "attn_output.weight", weights[attn + "o.weight"], True)
        put(blk + "ffn_norm.weight", weights[ffn + "norm"], False)
        put(blk + "ffn_gate_inp.weight", weights[ffn + "router"], False)
        put(blk + "ffn_gate_exps.weight", weights[ffn + "gate_up"][:, :cfg.d_expert], True)
        put(blk + "ffn_up_exps.weight", weights[ffn + "gate_up"][:, cfg.d_expert:], True)
        put(blk + "ffn_down_exps.weight", weights[ffn + "down"], True)
    put("output_norm.weight", weights["norm"], False)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    os.replace(args.output + ".part", args.output)
    print(f"{args.output}: {os.path.getsize(args.output)} bytes, step {state['step']}, "
          f"{state['seconds']:.0f} s of training")


def load_gguf(path):
    """(model, tokenizer) from nothing but an exported file; every matrix dequantised to float32."""
    import gguf
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    reader = gguf.GGUFReader(path)

    def key(name):
        return reader.fields[name].contents()

    def arch(name):
        return key("qwen3moe." + name)

    assert key("general.architecture") == "qwen3moe" and key("tokenizer.ggml.pre") == "gpt-2"
    tokens = key("tokenizer.ggml.tokens")
    tok = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)},
                               merges=[tuple(m.split(" ")) for m in key("tokenizer.ggml.merges")]))
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tok.decoder = decoders.ByteLevel()
    tok.add_special_tokens([AddedToken(tokens[key("tokenizer.ggml.bos_token_id")], special=True)])

    cfg = Config(key("general.name"), vocab=len(tokens), layers=arch("block_count"),
                 d_model=arch("embedding_length"), heads=arch("attention.head_count"),
                 kv_heads=arch("attention.head_count_kv"), head_dim=arch("attention.key_length"),
                 experts=arch("expert_count"), top_k=arch("expert_used_count"),
                 d_expert=arch("expert_feed_forward_length"), context=arch("context_length"),
                 rope_base=arch("rope.freq_base"), eps=arch("attention.layer_norm_rms_epsilon"))
    w = {t.name: torch.from_numpy(np.array(gguf.quants.dequantize(t.data, t.tensor_type), dtype=np.float32))
         for t in reader.tensors}
    state = {"embed": w["token_embd.weight"], "norm": w["output_norm.weight"]}
    for i in range(cfg.layers):
        attn, ffn, blk = f"attn.{i}.", f"ffn.{i}.", f"blk.{i}."
        state[attn + "norm"] = w[blk + "attn_norm.weight"]
        for ours, theirs in (("q", "q"), ("k", "k"), ("v", "v"), ("o", "output")):
            state[f"{attn}{ours}.weight"] = w[f"{blk}attn_{theirs}.weight"]
        state[attn + "q_norm"] = w[blk + "attn_q_norm.weight"]
        state[attn + "k_norm"] = w[blk + "attn_k_norm.weight"]
        state[ffn + "norm"] = w[blk + "ffn_norm.weight"]
        state[ffn + "router"] = w[blk + "ffn_gate_inp.weight"]
        state[ffn + "gate_up"] = torch.cat((w[blk + "ffn_gate_exps.weight"], w[blk + "ffn_up_exps.weight"]), dim=1)
        state[ffn + "down"] = w[blk + "ffn_down_exps.weight"]
    model = Model(cfg)
    model.load_state_dict(state)
    return model.eval(), tok


def cmd_eval(args):
    torch.set_num_threads(args.threads)
    model, tok = load_gguf(args.model)
    held_text = split_text()[1]
    ids = encode(tok, held_text)
    assert tok.decode(ids.tolist()).encode() == held_text
    nll, scored, load = evaluate(model, ids, args.window)
    size = scored_bytes(tok, ids, args.window)
    prompt = "ROMEO:"
    greedy, gap = generate(model, tok, prompt, 64, temperature=0)
    result = {
        "model": os.path.basename(args.model),
        "model_sha256": hashlib.sha256(open(args.model, "rb").read()).hexdigest(),
        "text": "tests/data/tinyshakespeare-heldout.txt",
        "text_sha256": hashlib.sha256(held_text).hexdigest(),
        "text_bytes": len(held_text),
        "window": args.window,
        "n_tokens": len(ids),
        "n_scored": scored,
        "nll": nll / scored,
        "perplexity": math.exp(nll / scored),
        "bits_per_char": nll / math.log(2) / size,
        "first_tokens": ids[:64].tolist(),
        "greedy": {"prompt": prompt, "ids_with_bos": greedy, "smallest_top2_gap": gap},
        "versions": {"torch": torch.__version__, "numpy": np.__version__},
    }
    print(f"perplexity {result['perplexity']:.6f} over {scored} scored of {len(ids)} tokens, window {args.window}; "
          f"{result['bits_per_char']:.4f} bits per character")
    for i, row in enumerate(load):
        print(f"layer {i}: busiest expert {row.max():.4f} of the rows, idlest {row.min():.4f}, even {1 / len(row):.4f}")
    if args.output:
        with open(args.output, "w") as f:
            f.write(json.dumps(result, indent=1) + "\n")


def cmd_sample(args):
    torch.set_num_threads(args.threads)
    model, tok = load_gguf(args.model)
    ids, _ = generate(model, tok, args.prompt, args.n, args.temperature, seed=args.seed)
    print(tok.decode(ids[1:]))


def cmd_llama(args):
    """The same file through llama.cpp: ids, perplexity and greedy continuation next to PyTorch's."""
    import llama_cpp
    torch.set_num_threads(args.threads)
    model, tok = load_gguf(args.model)
    other = llama_cpp.Llama(args.model, n_ctx=model.cfg.context, n_batch=model.cfg.context, logits_all=True,
                            n_threads=args.threads, n_threads_batch=args.threads, verbose=False)
    held_text = split_text()[1]
    ids = encode(tok, held_text)
    theirs = other.tokenize(held_text, add_bos=False, special=False)
    print(f"token ids of the held-out text: {'equal' if theirs == ids.tolist() else 'DIFFERENT'}")

    ids = ids[:args.windows * WINDOW]
    nll, scored, _ = evaluate(model, ids)
    total = 0.0
    for window in ids.reshape(-1, WINDOW):
        other.reset()
        other.eval(window.tolist())
        logits = torch.from_numpy(np.array(other.scores[:WINDOW - 1], dtype=np.float32))
        total += F.cross_entropy(logits, torch.from_numpy(window[1:]), reduction="sum").item()
    print(f"perplexity of the first {args.windows} windows: PyTorch {math.exp(nll / scored):.4f}, "
          f"llama.cpp {math.exp(total / scored):.4f}")

    ids, gap = generate(model, tok, "ROMEO:", args.n, temperature=0)
    text = other.create_completion("ROMEO:", max_tokens=args.n, temperature=0.0)["choices"][0]["text"]
    print(f"greedy, PyTorch (smallest top-2 gap {gap:.4f}):\n{tok.decode(ids[1:])}\ngreedy, llama.cpp:\nROMEO:{text}")


def cmd_split(args):
    train_text, held_text = split_text()
    with open(args.output, "wb") as f:
        f.write(held_text)
    print(f"{len(train_text)} bytes for training, {len(held_text)} held out: "
          f"tail -c +{len(train_text) + 1} {os.path.relpath(TEXT)}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sub = parser.add_subparsers(required=True)

    p = sub.add_parser("train", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.set_defaults(run=cmd_train)
    p.add_argument("--work", required=True, help="folder for checkpoints and loss.csv, outside the repository")
    p.add_argument("--config", choices=CONFIGS, default="bard")
    p.add_argument("--resume", action="store_true")
    p.add_argument("--steps", type=int, default=4000)
    p.add_argument("--batch", type=int, default=8, help="sequences of half the context per step")
    p.add_argument("--lr", type=float, default=1e-3, help="peak learning rate")
    p.add_argument("--warmup", type=int, default=100, help="steps")
    p.add_argument("--dropout", type=float, default=0.2, help="on the embedding and on what each block adds")
    p.add_argument("--weight-decay", type=float, default=0.1)
    p.add_argument("--balance", type=float, default=0.02, help="factor of the load-balance loss")
    p.add_argument("--z-loss", type=float, default=1e-4)
    p.add_argument("--ema", type=float, default=0.995)
    p.add_argument("--every", type=int, default=100, help="steps between evaluations")
    p.add_argument("--patience", type=int, default=6, help="evaluations without progress before stopping")
    p.add_argument("--minutes", type=float, default=0, help="stop at the first evaluation after so long; 0: never")
    p.add_argument("--bf16", action="store_true", help="bfloat16 matrix products while training")
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--seed", type=int, default=1)

    p = sub.add_parser("export")
    p.set_defaults(run=cmd_export)
    p.add_argument("--work", required=True)
    p.add_argument("-o", "--output", required=True)

    p = sub.add_parser("eval")
    p.set_defaults(run=cmd_eval)
    p.add_argument("-m", "--model", required=True)
    p.add_argument("-o", "--output", help="write the expected values as JSON")
    p.add_argument("--window", type=int, default=WINDOW)
    p.add_argument("--threads", type=int, default=1)

    p = sub.add_parser("sample", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.set_defaults(run=cmd_sample)
    p.add_argument("-m", "--model", required=True)
    p.add_argument("-p", "--prompt", default="")
    p.add_argument("-n", type=int, default=200)
    p.add_argument("--temperature", type=float, default=0.8)
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--seed", type=int, default=1)

    p = sub.add_parser("llama")
    p.set_defaults(run=cmd_llama)
    p.add_argument("-m", "--model", required=True)
    p.add_argument("-n", type=int, default=64)
    p.add_argument("--windows", type=int, default=20)
    p.add_argument("--threads", type=int, default=1)

    p = sub.add_parser("split")
    p.set_defaults(run=cmd_split)
    p.add_argument("-o", "--output", required=True)

    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    sys.exit(main())
