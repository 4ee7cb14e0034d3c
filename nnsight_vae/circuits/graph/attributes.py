"""Attribute values of graphs as JSON data and back, without losing their kind."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from nnsight_vae.errors import CircuitError

_ARRAY_KINDS = "biufU"  # what an array in a file may hold: numbers, booleans, text; never objects


def encode(value: Any, where: str) -> Any:
    """A value as JSON data: numbers, text, None, lists and dicts as themselves, anything else as a tagged dict.

    Scalars of numpy and torch become Python numbers of the same value; tensors become arrays.

    Args:
        value: number, text, None, tuple, list, dict, array or tensor, nested at will.
        where: names the attribute in the error.

    Raises:
        CircuitError: a value of another type.

    Example:
        >>> encode((1, float("nan")), "edge attribute 'ci'")
        {'$tuple': [1, {'$float': 'nan'}]}
    """
    if hasattr(value, "detach"):
        tensor = value.detach().cpu()
        half = tensor.is_floating_point() and tensor.element_size() == 2  # numpy has no bfloat16
        value = (tensor.float() if half else tensor).numpy()
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        value = value.item()
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, str):  # of a subclass (np.str_, an enum) the value is kept: str() of an enum is its name
        return str.__str__(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"$float": repr(float(value))}
    if isinstance(value, tuple):
        return {"$tuple": [encode(item, where) for item in value]}
    if isinstance(value, list):
        return [encode(item, where) for item in value]
    if isinstance(value, dict):
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return {str.__str__(key): encode(item, where) for key, item in value.items()}
        return {"$dict": [[encode(key, where), encode(item, where)] for key, item in value.items()]}
    if isinstance(value, np.ndarray) and value.dtype.kind in _ARRAY_KINDS:
        return {"$array": encode(value.tolist(), where), "dtype": value.dtype.str, "shape": list(value.shape)}
    raise CircuitError(
        f"{where} is a {type(value).__name__}, which no graph file can hold. Use numbers, text, None, tuples, lists, "
        "dicts or numeric arrays; str(value) if its text is enough."
    )


def decode(data: Any) -> Any:
    """The value that `encode` was given (scalars as Python numbers).

    Raises:
        ValueError, TypeError, KeyError: data that `encode` never makes.

    Example:
        >>> decode({"$tuple": [1, {"$float": "inf"}]})
        (1, inf)
    """
    if isinstance(data, list):
        return [decode(item) for item in data]
    if not isinstance(data, dict):
        return data
    if "$float" in data:
        return float(data["$float"])
    if "$tuple" in data:
        return tuple(decode(item) for item in data["$tuple"])
    if "$dict" in data:
        return {decode(key): decode(item) for key, item in data["$dict"]}
    if "$array" in data:
        dtype = np.dtype(data["dtype"])
        if dtype.kind not in _ARRAY_KINDS:
            raise ValueError(f"an array of {dtype} is not read")
        return np.array(decode(data["$array"]), dtype=dtype).reshape(data["shape"])
    return {key: decode(item) for key, item in data.items()}
