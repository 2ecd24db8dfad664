"""A pretended accelerator: tensors on the host that say they are elsewhere, and fail where a real one would.

Operations that mix its tensors with tensors of the host raise MixedDevicesError, but for what real accelerators accept:
single numbers of the host, and indices of the host. So the CPU alone shows a tensor made on the wrong device.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = "lazy"
"""A device that torch knows by name, and that needs no library before a tensor is moved there."""
_COPIES = ("aten._to_copy", "aten.copy_")
_TO_HOST = ("aten._local_scalar_dense", "aten.equal", "aten.is_nonzero")
_HOST_INDICES = ("aten.index", "aten.index_put", "aten.index_put_", "aten._index_put_impl_")


class MixedDevicesError(Exception):
    """An operation got tensors of two devices."""


class RemoteTensor(torch.Tensor):
    """A tensor of the pretended device."""

    values: torch.Tensor

    @staticmethod
    def __new__(cls, values: torch.Tensor) -> "RemoteTensor":
        with torch.inference_mode(False):  # A view of an older tensor must not be an inference tensor.
            remote = cls._wrap(values)
        remote.values = values.detach()
        return remote

    @classmethod
    def _wrap(cls, values: torch.Tensor) -> "RemoteTensor":
        return torch.Tensor._make_wrapper_subclass(
            cls,
            values.shape,
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            layout=values.layout,
            device=torch.device(DEVICE, 0),
            requires_grad=values.requires_grad,
        )

    def __repr__(self, **_: Any) -> str:
        return f"RemoteTensor({self.values!r})"

    def tolist(self) -> list[Any]:
        return self.values.tolist()

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _run(func, args, kwargs or {})


class _Factories(TorchDispatchMode):
    """Makes the tensors that are asked for on the pretended device."""

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.is_inference_mode_enabled():  # There, operations that consist of others come undivided.
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        return _run(func, args, kwargs)


@contextmanager
def pretended_device() -> Iterator[str]:
    """Yield the name of the device, which exists inside `with`."""
    overwrite, lift = torch.__future__.get_overwrite_module_params_on_conversion(), torch._C._only_lift_cpu_tensors()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    torch._C._set_only_lift_cpu_tensors(True)  # `torch.tensor` makes its values on the host and moves them.
    try:
        with _Factories():
            yield DEVICE
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(overwrite)
        torch._C._set_only_lift_cpu_tensors(lift)


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the result of an operation on the host, on the pretended device where it belongs there."""
    name = str(func).rsplit(".", 1)[0]
    tensors: list[torch.Tensor] = []
    local = [_local(value, tensors) for value in args]
    local_kwargs = {key: _local(value, tensors) for key, value in kwargs.items()}
    wrappers = {id(value.values): value for value in tensors if isinstance(value, RemoteTensor)}
    device = kwargs.get("device")
    if device is not None:
        to_remote, local_kwargs["device"] = torch.device(device).type == DEVICE, torch.device("cpu")
    elif name == "aten.copy_":
        to_remote = isinstance(args[0], RemoteTensor)
    else:
        to_remote = bool(wrappers) and name not in _TO_HOST
    if wrappers and name not in _COPIES:
        _check(name, func, args, tensors)
    result = func(*local, **local_kwargs)
    return _remote(result, wrappers) if to_remote else result


def _local(value: Any, tensors: list[torch.Tensor]) -> Any:
    """Return an argument with tensors of the host; `tensors` collects those that it holds."""
    if isinstance(value, torch.Tensor):
        tensors.append(value)
        return value.values if isinstance(value, RemoteTensor) else value
    return [_local(item, tensors) for item in value] if isinstance(value, list | tuple) else value


def _remote(result: Any, wrappers: dict[int, RemoteTensor]) -> Any:
    """Return a result on the pretended device; what an operation has changed in place stays the tensor that it was."""
    if isinstance(result, torch.Tensor):
        return wrappers[id(result)] if id(result) in wrappers else RemoteTensor(result)
    return type(result)(_remote(item, wrappers) for item in result) if isinstance(result, list | tuple) else result


def _check(name: str, func: Any, args: tuple[Any, ...], tensors: list[torch.Tensor]) -> None:
    """Raise MixedDevicesError if a tensor of the host is neither a single number nor an index of a remote one."""
    if name in _HOST_INDICES and isinstance(args[0], RemoteTensor):
        tensors = [value for value in (args[0], *args[2:]) if isinstance(value, torch.Tensor)]
    stray = [value for value in tensors if not isinstance(value, RemoteTensor) and value.dim()]
    if stray:
        shapes = ", ".join(str(tuple(value.shape)) for value in stray)
        raise MixedDevicesError(f"{func}: tensors of the host, {shapes}, among those of another device")
