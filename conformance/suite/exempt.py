"""Public callables that need no case, each under the reason why no device reaches it."""

from __future__ import annotations

EXEMPT: dict[str, tuple[str, ...]] = {
    "names and folders of files; no tensor is made": (
        "checkpoints:cache_dir",
        "checkpoints:checkpoint_roots",
        "checkpoints:identify",
        "checkpoints:local_checkpoints",
        "checkpoints:read_json",
        "checkpoints:tasks_of",
        "checkpoints:weight_files",
        "weights:original_name",
    ),
    "fetches files over the network": (
        "checkpoints:download",
        "cli.download:add_parser",
        "cli.download:run",
    ),
    "text in, text out": (
        "cli.console:OneLineParser",
        "cross_attention:parse_heads",
        "errors:first_line",
        "request:check_range",
    ),
    "needs the vllm package, an extra that no environment of the suite installs": (
        "lm.vllm:VllmBackend",
        "lm.vllm:VllmBackend.close",
        "lm.vllm:VllmBackend.codes",
        "lm.vllm:VllmBackend.text",
    ),
    "writes the built-in checkpoint on the host, before a device is chosen": (
        "demo.recipe:DemoShape.attention",
        "demo.recipe:build",
        "demo.recipe:make_pipeline",
        "demo.recipe:make_tokenizer",
        "demo.recipe:old_weight_norm",
        "demo.recipe:seed_weights",
        "demo:make_folder",
        "demo:path",
        "lm.demo:LmShape.config",
        "lm.demo:build",
        "lm.demo:lm_tokenizer",
        "lm.demo:path",
    ),
}
