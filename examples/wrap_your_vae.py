"""I have a VAE: wrap it, look at its sites, read and write inside one trace, and get it back as it was."""

import torch
from torch import nn

import nnsight_vae as nv


class MyVAE(nn.Module):
    """Any module with encode and decode will do."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(inplace=True))
        self.fc_mu, self.fc_logvar = nn.Linear(32, 4), nn.Linear(32, 4)
        self.decoder = nn.Sequential(
            nn.Linear(4, 32), nn.ReLU(inplace=True), nn.Linear(32, 64), nn.Unflatten(1, (1, 8, 8))
        )

    def encode(self, x):
        h = self.encoder(x)
        return self.fc_mu(h), self.fc_logvar(h)

    def decode(self, z):
        return self.decoder(z)


torch.manual_seed(0)
my_model, images = MyVAE(), torch.rand(16, 1, 8, 8)

vae = nv.VAE(my_model, example=images)
print(vae)
print("largest difference from the model itself:", vae.verify(images))

with torch.no_grad(), vae.trace(images):
    hidden = vae.encoder[1].output.save()
    vae.latent.z.output[:, 3] = 2.0
    moved = vae.output.save()
print("hidden", tuple(hidden.shape), "reconstruction moved by", float((moved - vae(images)).detach().abs().mean()))

out = nv.intervene(vae, images, {"latent.z[3]": nv.Set(2.0), "encoder.1[0:8]": nv.Zero()})
print("the same and eight neurons off:", float((out.reconstruction - vae(images).detach()).abs().mean()))

assert vae.unwrap() is my_model
