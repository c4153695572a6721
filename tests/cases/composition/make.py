"""Write scores.npz: two small models of TransformerLens 3.9.0 and its composition scores of them.

    pip install 'transformer-lens==3.9.0' && python tests/cases/composition/make.py

Weights are those before TransformerLens folds norms and centres; scores and the eigenvalues of
whole circuits those after. ``ln`` has LayerNorm, ``rms`` RMSNorm and grouped heads.
"""

from pathlib import Path

import numpy as np
import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig

SIZES = dict(
    n_layers=3, d_model=15, n_ctx=8, d_head=5, n_heads=4, d_vocab=23, act_fn="gelu", d_mlp=8
)  # fmt: skip
MODELS = {
    "ln": dict(normalization_type="LN"),
    "rms": dict(
        normalization_type="RMS", positional_embedding_type="rotary", rotary_dim=4,
        n_key_value_heads=2, gated_mlp=True, final_rms=True,
    ),
}  # fmt: skip
KEPT = ("embed.W_E", "unembed.W_U", "ln1", "ln_final", "attn.W_", "attn._W_", "attn.b_Q")


def balance(matrix: torch.Tensor) -> float:
    """Return Σλ/Σ|λ|."""
    values = torch.linalg.eigvals(matrix.detach().double())
    return float(values.sum().real / values.abs().sum())


def main() -> None:
    """Write the file."""
    found = {}
    for name, more in MODELS.items():
        torch.manual_seed(3)
        model = HookedTransformer(HookedTransformerConfig(**SIZES, **more))
        with torch.no_grad():
            for path, parameter in model.named_parameters():
                norm = path.endswith(".w")
                parameter.copy_(1.5 * torch.rand_like(parameter) + 0.3 if norm
                                else 0.4 * torch.randn_like(parameter))  # fmt: skip
        before = {path: value.clone() for path, value in model.state_dict().items()}
        found |= {
            f"{name}/{path}": value.numpy() for path, value in before.items()
            if any(part in path for part in KEPT)
        }  # fmt: skip
        model.load_and_process_state_dict(
            before, fold_ln=True, center_unembed=True, center_writing_weights=name == "ln"
        )
        for kind in "QKV":
            scores = model.all_composition_scores(kind).detach()
            found[f"{name}/scores.{kind}"] = scores.numpy()
        said, seen = np.zeros((2, 3, 4))
        for at in np.ndindex(3, 4):
            said[at] = balance(model.W_E @ model.W_V[at] @ model.W_O[at] @ model.W_U)
            scores = model.W_E @ model.W_Q[at] @ model.W_K[at].T @ model.W_E.T
            seen[at] = balance(scores - scores.mean(1, keepdim=True))  # a softmax does not see it
        found |= {f"{name}/copying": said, f"{name}/matching": seen}
    np.savez_compressed(Path(__file__).parent / "scores.npz", **found)


if __name__ == "__main__":
    main()
