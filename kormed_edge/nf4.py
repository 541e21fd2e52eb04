"""Loading the base model as training sees it: NF4 with double quantization, bf16 compute."""

from pathlib import Path
from typing import Any

from kormed_edge.errors import BaseModelError
from kormed_edge.prompts import END, START


def load_nf4(base: Path, *, training: bool = False, attention: str | None = None) -> Any:
    """The base model in NF4, on the GPU if there is one. Source: Dettmers et al. 2023.

    `attention` names an attention function that was registered with transformers.
    """
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    device: dict[str, Any] = {"": 0 if torch.cuda.is_available() else "cpu"}
    model = AutoModelForCausalLM.from_pretrained(
        str(base),
        quantization_config=nf4,
        dtype=torch.bfloat16,
        device_map=device,
        attn_implementation=attention,
    )
    if training:
        _keep_differentiable(model)
    return model


def _keep_differentiable(model: Any) -> None:
    """Forbid bitsandbytes to repack the weights at the first validation.

    On a CPU with AVX512-BF16 it does so for good, and the product with repacked weights has no
    gradient: the steps after a validation would learn from a wrong one, or stop at a bias.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def load_tokenizer(folder: Path) -> Any:
    """The model's tokenizer, padding with a token that is never the end token.

    A pad token equal to the end token masks the end out of the loss, and the model never stops
    (trl#1623). Raises `BaseModelError` if the tokenizer does not know ChatML's tokens.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    if missing := [token for token in (START, END) if token not in tokenizer.get_vocab()]:
        raise BaseModelError(
            f"{folder}: the tokenizer has no token {' and no '.join(missing)}",
            "a model that was trained on ChatML, such as Qwen2.5 or SmolLM2",
            "choose another base model with BASE=PATH",
        )
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        tokenizer.pad_token = "<|endoftext|>"
    return tokenizer
