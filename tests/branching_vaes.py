"""Small VAEs whose layers form no chain: skips, norms over channels, attention, gates after additions."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from vaes import seeded


class GatedResidualVAE(nn.Module):
    """relu(x + f(x)) in encoder and decoder, as in ResNets: a gate after each addition."""

    image = (2, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.f1, self.f2 = nn.Conv2d(2, 3, 3, 2, 1), nn.Conv2d(3, 3, 3, 1, 1), nn.Conv2d(3, 3, 3, 1, 1)
        self.fc_mu, self.fc_logvar = nn.Linear(48, 2), nn.Linear(48, 2)
        self.start, self.g1 = nn.Linear(2, 48), nn.Conv2d(3, 3, 3, 1, 1)
        self.out = nn.ConvTranspose2d(3, 2, 4, 2, 1)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.stem(x)
        h = F.relu(h + self.f2(F.relu(self.f1(F.relu(h))))).flatten(1)
        return self.fc_mu(h), 0.3 * self.fc_logvar(h)

    def decode(self, z: Tensor) -> Tensor:
        h = self.start(z).unflatten(1, (3, 4, 4))
        return torch.sigmoid(self.out(F.relu(h + self.g1(torch.tanh(h)))))


class SkipVAE(nn.Module):
    """U-Net-like skips: late layers read early channels beside what became of them, and the input itself."""

    image = (1, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(1, 3, 3, 1, 1), nn.Conv2d(3, 4, 3, 1, 1)
        self.fc_mu, self.fc_logvar = nn.Linear(20, 2), nn.Linear(20, 2)
        self.up1, self.up2, self.out = nn.Linear(2, 16), nn.ConvTranspose2d(4, 3, 2, 2), nn.Conv2d(7, 1, 3, 1, 1)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = F.max_pool2d(torch.tanh(self.down1(x)), 2)
        h = F.avg_pool2d(torch.tanh(self.down2(h)), 2)
        h = torch.cat([h, F.avg_pool2d(x, 4)], 1).flatten(1)
        return self.fc_mu(h), 0.3 * self.fc_logvar(h)

    def decode(self, z: Tensor) -> Tensor:
        early = F.relu(self.up1(z)).unflatten(1, (4, 2, 2))
        late = torch.tanh(self.up2(early))
        both = torch.cat([F.interpolate(early, scale_factor=2), late], 1)
        return torch.sigmoid(self.out(F.interpolate(both, scale_factor=2)))


class GroupNormVAE(nn.Module):
    """Two groups of two channels in the encoder; in the decoder a norm over channels that a linear layer's blocks make up."""

    image = (1, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.conv2 = nn.Conv2d(1, 4, 4, 2, 1), nn.GroupNorm(2, 4), nn.Conv2d(4, 3, 4, 2, 1)
        self.fc_mu, self.fc_logvar = nn.Linear(12, 2), nn.Linear(12, 2)
        self.fc, self.split, self.norm2 = nn.Linear(2, 16), nn.Unflatten(1, (4, 2, 2)), nn.GroupNorm(1, 4)
        self.up, self.out = nn.ConvTranspose2d(4, 3, 2, 2), nn.ConvTranspose2d(3, 1, 2, 2)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(self.conv2(F.silu(self.norm(self.conv(x))))).flatten(1)
        return self.fc_mu(h), 0.3 * self.fc_logvar(h)

    def decode(self, z: Tensor) -> Tensor:
        return torch.sigmoid(self.out(torch.tanh(self.up(self.norm2(self.split(self.fc(z)))))))


class AttentionVAE(nn.Module):
    """Self-attention between two convolutions, once through torch's module and once through the fused function."""

    image = (1, 4, 4)

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.attend, self.conv2 = (
            nn.Conv2d(1, 4, 2, 2),
            nn.MultiheadAttention(4, 2, batch_first=True),
            nn.Conv2d(4, 3, 1),
        )
        self.fc_mu, self.fc_logvar = nn.Linear(12, 2), nn.Linear(12, 2)
        self.fc, self.qkv, self.proj, self.out = (
            nn.Linear(2, 12),
            nn.Linear(3, 9),
            nn.Linear(3, 3),
            nn.ConvTranspose2d(3, 1, 2, 2),
        )

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.conv(x)
        tokens = h.flatten(2).transpose(1, 2)
        mixed = self.attend(tokens, tokens, tokens, need_weights=False)[0]
        h = torch.tanh(self.conv2((tokens + mixed).transpose(1, 2).unflatten(2, (2, 2)))).flatten(1)
        return self.fc_mu(h), 0.3 * self.fc_logvar(h)

    def decode(self, z: Tensor) -> Tensor:
        tokens = self.fc(z).unflatten(1, (4, 3))
        q, k, v = self.qkv(tokens).chunk(3, -1)
        tokens = tokens + self.proj(F.scaled_dot_product_attention(q, k, v))
        return self.out(tokens.transpose(1, 2).unflatten(2, (2, 2)))


class LayerNormVAE(nn.Module):
    """Fully connected, with norms over all features, and a packed head."""

    image = (10,)

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(10, 6), nn.LayerNorm(6), nn.GELU(), nn.Linear(6, 4))
        self.decoder = nn.Sequential(nn.Linear(2, 6), nn.LayerNorm(6), nn.GELU(), nn.Linear(6, 10))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mu, logvar = self.encoder(x).chunk(2, 1)
        return mu, 0.3 * logvar

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(z)


class GatesBeforeAdditionVAE(LayerNormVAE):
    """relu(a) + relu(b), and a sum of halves: each node's share is the change of its own gate."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.halves, self.last = nn.Linear(2, 6), nn.Linear(2, 6), nn.Linear(6, 8), nn.Linear(4, 10)

    def decode(self, z: Tensor) -> Tensor:
        left, right = self.halves(F.relu(self.a(z)) + F.relu(self.b(z))).chunk(2, 1)
        return self.last(F.relu(left) + F.relu(right))


class BranchesVAE(LayerNormVAE):
    """A long branch that runs before a short one."""

    def __init__(self) -> None:
        super().__init__()
        self.long, self.longer, self.short, self.last = (
            nn.Linear(2, 3),
            nn.Linear(3, 3),
            nn.Linear(2, 3),
            nn.Linear(3, 10),
        )

    def decode(self, z: Tensor) -> Tensor:
        far = self.longer(torch.tanh(self.long(z)))
        return self.last(torch.tanh(far + self.short(z)))


class FarGateVAE(LayerNormVAE):
    """A port of the last layer that a unit changes only far beyond where it is for any but extreme inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(7, 10)
        self.decoder = nn.Linear(2, 6)
        self.encoder = nn.Linear(10, 4)

    def decode(self, z: Tensor) -> Tensor:
        h = self.decoder(z)
        return self.last(torch.cat([h, F.relu(h[:, :1] - 1e5)], 1))


class NamesVAE(LayerNormVAE):
    """Latents that a norm mixes or that two layers add up to; outputs of which a layer gives some and another the rest."""

    def __init__(self, moments: str) -> None:
        super().__init__()
        self.moments = moments
        self.one, self.other, self.norm = nn.Linear(10, 2), nn.Linear(10, 2), nn.LayerNorm(2)
        self.encoder, self.first, self.last = nn.Linear(10, 2), nn.Linear(2, 4), nn.Linear(4, 7)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mu = self.norm(self.one(x)) if self.moments == "mixed" else self.one(x) + self.other(x)
        return mu, self.encoder(x)

    def decode(self, z: Tensor) -> Tensor:
        h = self.first(z)
        return torch.cat([h[:, :3], self.last(torch.tanh(h))], 1)


class GroupedHeadVAE(nn.Module):
    """A packed head of two groups: mu is made from one half of the channels, logvar from the other."""

    image = (1, 4, 4)

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head, self.out = (
            nn.Conv2d(1, 4, 2, 2),
            nn.Conv2d(4, 4, 1, groups=2),
            nn.ConvTranspose2d(2, 1, 2, 2),
        )

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mu, logvar = self.head(torch.tanh(self.stem(x))).chunk(2, 1)
        return mu, logvar

    def decode(self, z: Tensor) -> Tensor:
        return self.out(z)


class ShutVAE(LayerNormVAE):
    """Gates that are shut but for extreme inputs; and a head for logvar that is deep and calls one layer twice."""

    def __init__(self) -> None:
        super().__init__()
        self.head1, self.head2, self.again = nn.Linear(10, 3), nn.Linear(3, 2), nn.Linear(2, 2)
        self.encoder, self.decoder, self.last = nn.Linear(10, 2), nn.Linear(2, 6), nn.Linear(6, 10)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.encoder(x), 0.1 * self.again(self.again(self.head2(torch.tanh(self.head1(x)))))

    def decode(self, z: Tensor) -> Tensor:
        return self.last(F.relu(self.decoder(z) - 50))


class TwiceVAE(LayerNormVAE):
    """One layer is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.again = nn.Linear(6, 6)
        self.last = nn.Linear(6, 10)
        self.decoder = nn.Sequential(nn.Linear(2, 6), nn.Tanh())

    def decode(self, z: Tensor) -> Tensor:
        return self.last(torch.tanh(self.again(torch.tanh(self.again(self.decoder(z))))))


def branching_vaes() -> dict[str, nn.Module]:
    models = (GatedResidualVAE(), SkipVAE(), GroupNormVAE(), AttentionVAE(), LayerNormVAE())
    found = {type(model).__name__.removesuffix("VAE"): seeded(model, seed) for seed, model in enumerate(models)}
    with torch.no_grad():  # or attention and what follows it saturate
        for parameter in found["Attention"].parameters():
            parameter *= 0.7
    return found
