"""``attncli inspect`` through its door: attention, tensors, checkpoints, widths, all bad input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from attncli import files
from tests.support.program import SAMPLE, Door


def test_the_table(door: Door) -> None:
    ran = door("inspect", SAMPLE, "--what-if", "scale=none", "--what-if", "dtype=float16")
    assert ran.code == 0 and ran.err == ""
    lines = ran.out.splitlines()
    assert lines[0] == "36 heads (3 × 12) · 0 critical · 0 watch · 36 ok"
    assert "padding(18, 13, 15)" in ran.out and "upstream gradient dO (seed 0)" in ran.out
    assert max(map(len, lines)) <= 80
    assert "[CLS] 84 %" in ran.out or "[CLS] 82 %" in ran.out
    for title in ("Scale", "What if", "1/√32", "dtype=float16"):
        assert title in ran.out
    assert "Without the scale 70 % of the rows saturate (with it 1 %)" in " ".join(ran.out.split())


def test_json_carries_every_statistic(door: Door) -> None:
    ran = door("inspect", SAMPLE, "--what-if", "qk_clip=5, sink=0", "--json", "--head", "2")
    data = ran.data
    assert data["schema"] == "attncli.inspect/1" and len(data["heads"]) == 3
    head = data["heads"][0]
    assert (head["batch"], head["head"], head["verdict"], head["reasons"]) == (0, 2, "ok", [])
    assert head["roles"][0]["role"] == "first token" and head["roles"][0]["token"] == "[CLS]"
    assert set(head["statistics"]["entropy"]) == {"mean", "p05", "median", "p95", "min", "max"}
    assert set(head["statistics"]) >= {
        "jacobian_spectral", "grad_query_norm", "vanishing_share", "sink_key", "mean_distance",
        "head_similarity", "effective_rank", "rank_residual", "overflow_room", "logit_std_ratio",
    }  # fmt: skip
    assert [one["scale"] for one in data["scale_effect"]] == ["1/√32", "none"]
    assert data["what_if"][0]["what"] == "qk_clip=5, sink=0"
    assert data["what_if"][0]["output_change"] > 0.01 and len(data["what_if"][0]["heads"]) == 3
    assert data["summary"]["ok"] == 3


def test_csv_and_markdown(door: Door) -> None:
    lines = door("inspect", SAMPLE, "--format", "csv").out.splitlines()
    assert len(lines) == 37 and lines[0].startswith(
        "batch,head,verdict,reasons,looks_at,entropy_mean"
    )
    assert "| batch/head | verdict |" in door("inspect", SAMPLE, "--format", "markdown").out


def test_row_statistics(door: Door, tmp_path: Path) -> None:
    ran = door("inspect", SAMPLE, "--include", "row_statistics", "-o", "rows.npz")
    assert ran.code == 0 and "wrote rows.npz (row_statistics)" in ran.err
    saved = np.load(tmp_path / "rows.npz")
    assert saved["row_statistics.grad_query_norm"].shape == (3, 12, 18)
    data = door("inspect", SAMPLE, "--include", "row_statistics", "--json").data
    got = np.asarray(data["row_statistics"]["entropy"], float)
    np.testing.assert_allclose(got, saved["row_statistics.entropy"])


def test_fail_on_and_policy(door: Door, tmp_path: Path) -> None:
    (tmp_path / "limits.toml").write_text("[large_logits]\nwatch = 8\nhint = 8\n")
    assert door("inspect", SAMPLE, "--fail-on", "watch").code == 0
    ran = door("inspect", SAMPLE, "--fail-on", "watch", "--policy", "limits.toml")
    assert ran.code == 1 and "its largest logit is 8.58" in ran.out
    assert door("inspect", SAMPLE, "--fail-on", "critical", "--policy", "limits.toml").code == 0
    assert (
        door("inspect", SAMPLE, "--fail-on", "watch", "--policy", "limits.toml", "--head", "0").code
        == 0
    )


def test_many_heads_show_the_telling_ones(door: Door, tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(4, 20, 6, 8))
    np.savez(tmp_path / "many.npz", query=x, key=x[::-1], value=x)
    ran = door("inspect", "many.npz")
    assert "16 of 80 heads, all ok" in ran.out and len(ran.out.splitlines()) < 40
    x[2, 3, 1, 1] = np.nan
    np.savez(tmp_path / "many.npz", query=x, key=np.ones_like(x), value=x)
    assert "40 of 80 heads, the worst of 80" in door("inspect", "many.npz").out
    assert "head 2/3 critical: 100 % of its rows are NaN" in door("inspect", "many.npz").out


def test_sweep_dim(door: Door) -> None:
    ran = door("inspect", "--sweep-dim", "8,64")
    assert ran.code == 0 and "unit-normal" in ran.out.splitlines()[0]
    assert "at d = 64" in ran.out and max(map(len, ran.out.splitlines())) <= 80
    data = door("inspect", "--sweep-dim", "8,64", "--json", "--seed", "1").data
    assert [one["dim"] for one in data["sweep_dim"]] == [8, 64]
    assert data["sweep_dim"][1]["none"]["score_variance"] == pytest.approx(64, rel=0.1)


def test_ndjson(attncli: Door, door: Door, tmp_path: Path) -> None:
    (tmp_path / "two.ndjson").write_text(
        '{"query": [[1, 0], [0, 1]]}\n{"query": [[1, 0], [0, 1]], "scale": "none"}\n'
    )
    ran = door("inspect", "two.ndjson")
    assert ran.code == 0 and [len(line["heads"]) for line in ran.lines] == [1, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "nothing to inspect"),
        ((SAMPLE, "--what-if", "scal=none"), "did you mean 'scale'"),
        ((SAMPLE, "--policy", "missing.toml"), "no such file: missing.toml"),
        ((SAMPLE, "--fail-on", "criticl"), "did you mean 'critical'"),
        ((SAMPLE, "--include", "weights"), "nothing is called 'weights'"),
        ((SAMPLE, "--head", "12"), "out of range"),
        ((SAMPLE, "--sweep-dim", "8"), "leave one of the two out"),
        (("--sweep-dim", "8,x"), "'x' is no width"),
        (("--sweep-dim", ","), "names no width"),
        ((SAMPLE, "--header", "--what-if", "scale=none"), "leave one of them out"),
        (("w.npz", "--fail-on", "watch"), "w.npz has no query: it holds weight, bias"),
        (("missing.npz",), "missing.npz"),
    ],
)
def test_bad_input(arguments: tuple[object, ...], message: str, door: Door, tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", weight=np.ones((3, 3)), bias=np.ones(3))
    ran = door("inspect", *arguments)
    assert ran.code == 2 and ran.out == ""
    assert message in ran.err and "Traceback" not in ran.err


def test_a_file_without_a_query_is_a_list_of_tensors(door: Door, tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", weight=np.ones((3, 3)), bias=np.zeros(3))
    ran = door("inspect", "w.npz")
    assert ran.code == 0 and "weight" in ran.out and "bias" in ran.out
    np.savez(tmp_path / "kv.npz", key=np.ones((3, 3)), value=np.zeros((3, 3)))
    assert "key and value but no query" in door("inspect", "kv.npz").out
    assert door("inspect", SAMPLE, "--header").code == 0


def test_empty_attention(door: Door, tmp_path: Path) -> None:
    np.savez(tmp_path / "no.npz", query=np.ones((2, 0, 4)), key=np.ones((2, 3, 4)))
    assert door("inspect", "no.npz").code == 0
    np.savez(tmp_path / "none.npz", query=np.ones((2, 3, 4)), key=np.ones((2, 0, 4)))
    ran = door("inspect", "none.npz", "--what-if", "dtype=float16", "--what-if", "qk_norm")
    assert ran.code == 0 and "2 critical" in ran.out
    np.savez(tmp_path / "heads.npz", query=np.ones((0, 3, 4)))
    assert door("inspect", "heads.npz").code == 0


@pytest.mark.parametrize(
    "more",
    [
        ("--policy", "limits.toml"),
        ("--fail-on", "watch"),
        ("--what-if", "softcap=5"),
        ("--backend", "torch"),
        ("-o", "out.npz"),
    ],
)
def test_sweep_dim_refuses_what_it_would_ignore(door: Door, more: tuple[str, ...]) -> None:
    done = door("inspect", "--sweep-dim", "8", *more)
    assert done.code == 2
    assert "no use in a sweep of widths (--sweep-dim)" in done.err


def test_nothing_to_judge_is_said(door: Door, tmp_path: Path) -> None:
    np.savez(tmp_path / "one.npz", query=np.ones((1, 4)), key=np.ones((1, 4)))
    done = door("inspect", "one.npz", "--fail-on", "watch")
    assert done.code == 0
    assert "no row that sees two keys" in done.err


def test_equal_values_have_no_vanishing_gradient(door: Door, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(2, 16, 8))
    np.savez(tmp_path / "veq.npz", query=q, key=k, value=np.ones((16, 8)))
    found = door("inspect", "veq.npz", "--json").data["heads"][0]["statistics"]
    assert found["vanishing_share"] == 0


def test_a_weight_is_never_more_than_one(door: Door, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    q, k = (rng.normal(size=(2, 8, 16, 8)) * 1e15).astype(np.float32)
    np.savez(tmp_path / "huge.npz", query=q, key=k)
    done = door("inspect", "huge.npz", "--json")
    for head in done.data["heads"]:
        assert head["statistics"]["sink_mass"] <= 1
    assert "RuntimeWarning" not in done.err


def test_inspect_takes_a_checkpoint_at_its_door(door: Door, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    layer = "bert.encoder.layer.0.attention"
    files.write(
        str(tmp_path / "model.safetensors"),
        {
            f"{layer}.{leaf}.weight": rng.normal(size=(8, 8)).astype(np.float32)
            for leaf in ("self.query", "self.key", "self.value", "output.dense")
        },
    )
    (tmp_path / "config.json").write_text('{"model_type": "bert", "num_attention_heads": 2}')
    done = door("inspect", tmp_path)
    assert done.code == 0, done.err
    assert "2 heads in 1 attention layer" in done.out
    assert len(door("inspect", tmp_path, "--json").data["heads"]) == 2
    assert "bert.encoder" in door("inspect", tmp_path, "--sort", "bytes", "--json").out
    refused = door("inspect", tmp_path, "--what-if", "scale=none")
    assert refused.code == 2
    assert "no query" in refused.err
