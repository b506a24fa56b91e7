"""Which operators MPS gained with each release of torch, to stand for an older one.

Read from the dispatch tables (`torchgen/packaged/ATen/native/native_functions.yaml`) of the wheels
2.9.1, 2.10.0, 2.11.0, 2.12.0 and 2.13.0. None of them lost an operator to the next one; the kernel
registered in Python (`linalg_lu_solve`, in `torch/_refs/linalg`) is there since 2.10.
"""

from __future__ import annotations

from importlib.metadata import version

ARRIVED = {
    "2.9": frozenset[str](),
    "2.10": frozenset(
        {"_embedding_bag", "_embedding_bag_backward", "_embedding_bag_dense_backward"}
        | {"_embedding_bag_forward_only", "_embedding_bag_per_sample_weights_backward"}
        | {"linalg_householder_product", "linalg_lu", "linalg_lu_solve", "unique_dim"}
    ),
    "2.11": frozenset(
        {"_unique", "cauchy_", "cholesky_inverse", "gcd", "gcd_", "geometric_", "log_normal_"}
        | {"special_erfcx", "vdot"}
    ),
    "2.12": frozenset(
        {"_cholesky_solve_helper", "_standard_gamma", "_standard_gamma_grad", "index_reduce"}
        | {"index_reduce_", "linalg_qr", "mvlgamma", "nonzero_static"}
    ),
    "2.13": frozenset(
        {"_assert_async", "_cdist_backward", "_dirichlet_grad", "_sample_dirichlet", "lcm", "lcm_"}
        | {"grid_sampler_2d_backward", "grid_sampler_3d_backward", "native_group_norm_backward"}
    ),
}
"""Release to the operators that MPS has since then; the first is the oldest that is known."""


def lacks(release: str | None) -> frozenset[str]:
    """Operators that torch `release` lacked on MPS and a newer one has; none for None.

    Raises ValueError for a release of which no table is known, and for one newer than torch here.
    """
    if release is None:
        return frozenset()
    if release not in ARRIVED:
        raise ValueError(
            f"torch={release!r}: expected one of {', '.join(ARRIVED)}, whose tables are known; for "
            "another release install it"
        )
    if _numbers(release) > _numbers(version("torch")):
        raise ValueError(
            f"torch={release!r} is newer than the installed {version('torch')}: expected an older "
            "one; install the newer one to stand for it"
        )
    names = list(ARRIVED)
    later = names[names.index(release) + 1 :]
    return frozenset(f"aten::{name}" for newer in later for name in ARRIVED[newer])


def _numbers(text: str) -> tuple[int, int]:
    major, minor = text.split(".")[:2]
    return int(major), int(minor)
