"""Small encoders with random weights, in folders as their authors lay them out."""

import json

import torch

from cxr_lib.model.text import learn_tokenizer

TEXTS = ['65F with SOB and fever ? pneumonia', 'r/o PTX after fall from a ladder', 'orthopnea, h/o CHF']
SMALL = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
VIT = SMALL | dict(intermediate_size=48, patch_size=8, image_size=64)
KINDS = {
    'dinov2': SMALL | dict(patch_size=8, image_size=64),
    'dinov2_with_registers': SMALL | dict(patch_size=8, image_size=64, num_register_tokens=4),
    'vit': VIT,
    'deit': VIT,
    'beit': VIT | dict(use_relative_position_bias=True, drop_path_rate=0.0),
    'siglip_vision_model': VIT,
    'clip_vision_model': VIT,
    'convnext': dict(hidden_sizes=[8, 16, 32, 32], depths=[1, 1, 1, 1], image_size=64),
    'convnextv2': dict(hidden_sizes=[8, 16, 32, 32], depths=[1, 1, 1, 1], image_size=64),
    'swin': dict(
        **dict(embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4, patch_size=4, image_size=64),
        drop_path_rate=0.0,
    ),
}
PROCESSOR = dict(
    image_mean=[0.53] * 3, image_std=[0.26] * 3, do_center_crop=True, crop_size=dict(height=64, width=64)
)


def vision_folder(folder, kind='dinov2', processor=PROCESSOR, **more):
    "A small vision model with random weights, as Hugging Face lays it out"
    from transformers import AutoConfig, AutoModel

    torch.manual_seed(1)
    model = AutoModel.from_config(AutoConfig.for_model(kind, **KINDS[kind] | more)).eval()
    with torch.no_grad():
        for k, p in model.named_parameters():
            if 'lambda1' in k or 'layer_scale' in k or 'gamma' in k:
                p.fill_(0.5)  # or a block would do nothing
            if p.std() == 0 or 'position' in k:
                p.add_(0.02 * torch.randn_like(p))
    model.save_pretrained(folder)
    if processor:
        (folder / 'preprocessor_config.json').write_text(json.dumps(processor))
    return model


def cxr_bert_folder(folder, kind='cxr-bert', marker=None):
    "A CXR-BERT with random weights, as Microsoft lays it out: code beside a BERT, and vocab.txt"
    from transformers import BertConfig, BertForMaskedLM

    folder.mkdir(parents=True, exist_ok=True)
    pieces = learn_tokenizer(TEXTS, 300).get_vocab()
    (folder / 'vocab.txt').write_text('\n'.join(sorted(pieces, key=pieces.get)), encoding='utf-8')
    torch.manual_seed(2)
    bert = BertForMaskedLM(BertConfig(vocab_size=len(pieces), **SMALL, intermediate_size=48)).eval()
    head = {'dense_to_hidden.weight': torch.zeros(16, 32), 'LayerNorm.weight': torch.ones(16)}
    state = bert.state_dict() | {f'cls_projection_head.{k}': v for k, v in head.items()}
    write_tensors(state, folder / 'model.safetensors')
    values = bert.config.to_dict() | dict(architectures=['CXRBertModel'], projection_size=16)
    values.pop('model_type')
    own = dict(AutoConfig='configuration_cxrbert.CXRBertConfig', AutoModel='modeling_cxrbert.CXRBertModel')
    values |= dict(auto_map=own) | (dict(model_type=kind) if kind else {})
    (folder / 'config.json').write_text(json.dumps(values))
    tokenizer = dict(do_lower_case=True, strip_accents=None, tokenizer_class='CXRBertTokenizer')
    tokenizer |= dict(auto_map=dict(AutoTokenizer=['configuration_cxrbert.CXRBertTokenizer', None]))
    (folder / 'tokenizer_config.json').write_text(json.dumps(tokenizer))
    for file in ('configuration_cxrbert.py', 'modeling_cxrbert.py'):
        (folder / file).write_text(f'open({str(marker or folder / "executed")!r}, "w").close()\n')
    return bert


def write_tensors(state, path):
    from safetensors.torch import save_file

    seen, own = set(), {}
    for k, v in state.items():  # tied weights have one memory
        own[k] = v.clone() if v.data_ptr() in seen else v.contiguous()
        seen.add(v.data_ptr())
    save_file(own, path, metadata={'format': 'pt'})
