"""P11: NDJSON of small problems, against a Python loop over torch that says the same of each.

The loop reads the same lines with ``json``, calls torch's SDPA in float64, computes the weights and
every statistic of compute's answer (all row statistics stacked, and summed up in one go), and
writes the answer with ``json``. Both are processes of their own on one thread. What is compared is
their CPU time a line, from a file of many lines less one of a single line: start-up (where
``import torch`` takes the longer) counts for neither.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from tests.benchmarks.timing import (
    ONE_THREAD,
    Line,
    Setting,
    Unmeasured,
    attncli,
    demand,
    ran,
    ratio,
)

LOOP = r"""
import json, math, sys
import torch
torch.set_num_threads(1)
ROW = ("entropy", "normalized_entropy", "effective_keys", "max_weight", "jacobian_trace",
       "jacobian_frobenius", "jacobian_spectral_low", "jacobian_spectral_high", "first_key_mass",
       "logit_std_ratio")
SUMMARY = ("mean", "p05", "median", "p95", "min", "max")
SHARES = torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64)
SDPA = torch.nn.functional.scaled_dot_product_attention
number = 0
with torch.inference_mode(), open(sys.argv[1]) as lines:
    for line in lines:
        number += 1
        said = json.loads(line)
        q, k, v = (torch.tensor(said[n], dtype=torch.float64) for n in ("query", "key", "value"))
        family = q.ndim
        if family == 2:
            q, k, v = q[None], k[None], v[None]
        causal = said.get("mask") == "causal"
        out = SDPA(q, k, v, is_causal=causal)
        scale = 1 / math.sqrt(q.shape[-1])
        s = q @ k.mT * scale
        L = s.shape[-1]
        if causal:
            keep = torch.ones(L, L, dtype=torch.bool).tril()
            z = s.masked_fill(~keep, -math.inf)
            n = keep.sum(-1)
            s = s.masked_fill(~keep, 0.0)
        else:
            keep, z, n = None, s, torch.full((s.shape[-2],), L)
        p = torch.softmax(z, -1)
        n = n.to(torch.float64)
        entropy = torch.special.entr(p).sum(-1)
        top = p.topk(min(2, L), -1).values
        p1, p2 = top[..., 0], top[..., 1]
        square = p * p
        two, three = square.sum(-1), (square * p).sum(-1)
        mean = s.sum(-1) / n
        away = s - mean[..., None]
        if causal:
            away = away.masked_fill(~keep, 0.0)
        spread = (away * away).sum(-1)
        log_n = torch.log(n.clamp(min=2))
        each = torch.stack([
            entropy, entropy / log_n, entropy.exp(), p1, 1 - two,
            (two - 2 * three + two * two).clamp(min=0).sqrt(), p2,
            (p1 * (1 - p1 + p2)).clamp(max=0.5), p[..., 0],
            (spread / n).sqrt() / (2 * log_n).sqrt(),
        ])
        choice = n >= 2
        if causal:
            each = each[..., choice]
        low, median, high = torch.quantile(each, SHARES, dim=-1)
        summed = torch.stack([each.mean(-1), low, median, high, each.amin(-1), each.amax(-1)], -1)
        summed = summed.transpose(0, 1).tolist()
        saturated = ((p1 > 0.99) & choice).sum(-1).double() / choice.sum()
        total = n.sum()
        overall = (n * mean).sum(-1) / total
        within = spread.sum(-1) + (n * (mean - overall[:, None]) ** 2).sum(-1)
        std = (within / total).sqrt().tolist()
        largest = s.abs().amax((-2, -1)).tolist()
        finite = torch.isfinite(out).all()
        heads = [
            {"batch": 0, "head": h, "statistics": {
                **{name: dict(zip(SUMMARY, numbers)) for name, numbers in zip(ROW, summed[h])},
                "saturated_share": saturated[h].item(), "logit_max": largest[h],
                "logit_std": std[h], "rows": L, "rows_with_choice": int(choice.sum()),
                "dead_rows": 0, "nonfinite": 0 if finite else int((~torch.isfinite(s)).sum()),
            }}
            for h in range(len(q))
        ]
        if family == 2:
            out, p = out[0], p[0]
        shape = list(out.shape)
        small = {n: a.tolist() for n, a in (("output", out), ("weights", p)) if a.numel() <= 4096}
        print(json.dumps({
            "line": number, "id": said["id"], "scale": scale, "mask": said.get("mask"),
            "shapes": {"query": shape, "key": shape, "value": shape, "output": shape},
            "heads": heads, **small,
        }))
"""

Shape = tuple[int, int, int, str | None]
CELLS: dict[str, list[Shape]] = {
    "1 head 8 x 16": [(1, 8, 16, None)],
    "1 head 8 x 16 causal": [(1, 8, 16, "causal")],
    "4 heads 32 x 64": [(4, 32, 64, None)],
    "4 heads 32 x 64 causal": [(4, 32, 64, "causal")],
    "mixed": [(1, 8, 16, None), (1, 8, 16, "causal"), (2, 8, 16, None), (1, 5, 16, None)],
}


def lines(shapes: list[Shape], count: int) -> str:
    """Problems of these shapes (heads, length, width, mask), mixed at random, one a line."""
    rng = np.random.default_rng(0)
    made = []
    for number in range(count):
        heads, length, width, mask = shapes[rng.integers(len(shapes))]
        shape = (length, width) if heads == 1 else (heads, length, width)
        one: dict[str, Any] = {"id": f"problem {number}"}
        one |= {
            name: rng.standard_normal(shape).round(6).tolist() for name in ("query", "key", "value")
        }
        made.append(json.dumps(one if mask is None else {**one, "mask": mask}))
    return "\n".join(made) + "\n"


def agree(ours: Any, theirs: Any) -> bool:
    """Whether all that the loop says is what we say."""
    if isinstance(theirs, dict):
        return all(agree(ours[name], value) for name, value in theirs.items())
    if isinstance(theirs, list):
        return len(ours) == len(theirs) and all(map(agree, ours, theirs))
    if isinstance(theirs, float):
        return math.isclose(ours, theirs, rel_tol=1e-9, abs_tol=1e-12)
    return bool(ours == theirs)


def p11(setting: Setting) -> Iterator[Line]:
    """NDJSON of small problems, against a Python loop over torch that says the same of each."""
    if not find_spec("torch"):
        raise Unmeasured("PyTorch is not installed")
    rounds, count = (3, 1000) if setting.quick else (7, 2000)
    with TemporaryDirectory() as folder:
        loop = Path(folder, "loop.py")
        loop.write_text(LOOP)
        many, one = Path(folder, "many.ndjson"), Path(folder, "one.ndjson")
        ours = attncli("compute", "--format", "ndjson", "--threads", "1")
        commands = {"ours": ours, "loop": [sys.executable, str(loop)]}
        for cell, shapes in CELLS.items():
            some = count if shapes[0][1] < 32 else count // 8
            text = lines(shapes, some)
            many.write_text(text)
            one.write_text(text.partition("\n")[0] + "\n")
            took: dict[str, list[float]] = {name: [] for name in commands}
            answers = {}
            for _ in range(rounds):
                for name, words in commands.items():
                    first, all_of_them = (ran([*words, str(p)], ONE_THREAD) for p in (one, many))
                    answers[name] = [json.loads(line) for line in all_of_them.out.splitlines()]
                    took[name].append((all_of_them.cpu - first.cpu) / (some - 1))
            demand(agree(answers["ours"], answers["loop"]), cell)
            figure, best = ratio(took, "loop", "ours")
            rates = "  ".join(f"{name} {1 / median(t):.0f} a second" for name, t in took.items())
            yield Line("P11", "NDJSON", cell, "a loop over torch", figure, best, 3.0, True,
                       note=rates)  # fmt: skip
