"""Loading the base model as training sees it: NF4 with double quantization, bf16 compute."""

from pathlib import Path
from typing import Any


def load_nf4(base: Path) -> Any:
    """The base model in NF4, on the GPU if there is one. Source: Dettmers et al. 2023."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    device: dict[str, Any] = {"": 0 if torch.cuda.is_available() else "cpu"}
    return AutoModelForCausalLM.from_pretrained(
        str(base), quantization_config=nf4, dtype=torch.bfloat16, device_map=device
    )


def load_tokenizer(folder: Path) -> Any:
    """The model's tokenizer, padding with a token that is never the end token.

    A pad token equal to the end token masks the end out of the loss, and the model never stops
    (trl#1623).
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        tokenizer.pad_token = "<|endoftext|>"
    return tokenizer
