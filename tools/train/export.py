#!/usr/bin/python3
"""Checkpoint -> Hugging Face layout (bfloat16):  /usr/bin/python3 export.py emo emo-nano

Run again at any time while training goes on.  The tokenizer of emo-nano is copied to other outputs.
"""
import json
import os
import shutil
import sys

import torch
from model import Model
from safet import save_bf16
import paths


def main(kind, name):
    out = paths.at(name)
    os.makedirs(out, exist_ok=True)
    ck = torch.load(f"{paths.WORK}/{kind}.pt")
    c = ck["config"]
    m = Model(c)
    m.flat.copy_(ck["flat"])
    p = {k: v.detach() for k, v in m.p.items()}
    H, I = c["hidden"], c["inter"]
    t = {"model.embed_tokens.weight": p["embed"], "lm_head.weight": p["head"], "model.norm.weight": p["norm"]}
    for i in range(c["layers"]):
        a = f"model.layers.{i}."
        for k, n in enumerate("qkv"):
            t[f"{a}self_attn.{n}_proj.weight"] = p[f"{i}.qkv"][k * H : (k + 1) * H]
        t[a + "self_attn.o_proj.weight"] = p[f"{i}.o"]
        t[a + "pre_attention_layernorm.weight"] = p[f"{i}.n1"]
        t[a + "pre_feedforward_layernorm.weight"] = p[f"{i}.n2"]
        t[a + "mlp.gate.weight"] = p[f"{i}.gate"]
        for e in range(c["experts"]):
            b = f"{a}mlp.experts.{e}."
            t[b + "gate_proj.weight"] = p[f"{i}.wgu"][e, :I]
            t[b + "up_proj.weight"] = p[f"{i}.wgu"][e, I:]
            t[b + "down_proj.weight"] = p[f"{i}.wd"][e]
    save_bf16(t, out + "/model.safetensors.tmp")
    os.replace(out + "/model.safetensors.tmp", out + "/model.safetensors")
    config = {
        "architectures": ["EmoForCausalLM"],
        "model_type": "emo",
        "vocab_size": c["vocab"],
        "hidden_size": H,
        "intermediate_size": I,
        "num_hidden_layers": c["layers"],
        "num_attention_heads": c["heads"],
        "num_key_value_heads": c["heads"],
        "hidden_act": "silu",
        "max_position_embeddings": c["max_pos"],
        "initializer_range": 0.04,
        "rms_norm_eps": c["eps"],
        "use_cache": True,
        "pad_token_id": 4095,
        "bos_token_id": None,
        "eos_token_id": 4094,
        "tie_word_embeddings": False,
        "rope_theta": c["theta"],
        "rope_scaling": None,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "num_experts_per_tok": c["per_tok"],
        "num_experts": c["experts"],
        "output_router_logits": False,
        "router_aux_loss_coef": 0.1,
        "norm_topk_prob": False,
        "num_shared_experts": c["shared"],
        "num_experts_per_layer": None,
        "num_shared_experts_per_layer": None,
        "always_active_experts": None,
        "always_active_experts_per_layer": None,
        "dense_intermediate_size": None,
        "dense_mlp_bias": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.57.1",
    }
    json.dump(config, open(out + "/config.json", "w"), indent=2)
    json.dump(
        {
            "_from_model_config": True,
            "eos_token_id": 4094,
            "pad_token_id": 4095,
            "transformers_version": "4.57.1",
        },
        open(out + "/generation_config.json", "w"),
        indent=2,
    )
    special = {
        str(i): {
            "content": s,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for i, s in ((4094, "<|endoftext|>"), (4095, "<|padding|>"))
    }
    json.dump(
        {
            "added_tokens_decoder": special,
            "add_prefix_space": False,
            "bos_token": None,
            "eos_token": "<|endoftext|>",
            "pad_token": "<|padding|>",
            "unk_token": None,
            "clean_up_tokenization_spaces": False,
            "model_max_length": c["max_pos"],
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
        open(out + "/tokenizer_config.json", "w"),
        indent=2,
    )
    src = paths.at("emo-nano/tokenizer.json")
    if os.path.realpath(src) != os.path.realpath(out + "/tokenizer.json"):
        shutil.copy(src, out + "/tokenizer.json")
    print(f"exported step {ck['step']}/{ck['steps']} running loss {ck['avg']:.4f} to {out}")


if __name__ == "__main__":
    main(*sys.argv[1:3])
