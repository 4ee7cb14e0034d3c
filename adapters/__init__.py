"""Adapters: everything that knows another library, or a way of writing VAEs, by name.

An adapter is a small object that reads a posterior from a module and decodes a latent with it. It holds no weights.
Third parties register theirs through the entry-point group `nnsight_vae.adapters`.
"""

from nnsight_vae.adapters.base import Adapter, find_adapter
from nnsight_vae.adapters.generic import CallableAdapter, EncodeDecode
from nnsight_vae.adapters.ladder import CallableLadder, Ladder

__all__ = ["Adapter", "CallableAdapter", "CallableLadder", "EncodeDecode", "Ladder", "find_adapter"]
