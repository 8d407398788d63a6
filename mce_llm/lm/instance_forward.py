"""Replace the `forward` of one module, wherever it comes from, and put back what was there.

A module's forward is its class's method, or a callable set on the instance by another library. A replacement calls what
it found, and is taken off again without disturbing what others have put around it since.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable
from typing import Any

from torch import nn

from mce_llm.errors import MceLlmError

# accelerate's hooks (`device_map`, offloading) set `forward` on the instance and keep the forward that they wrap here.
_HOOKED = "_old_forward"


class PatchedModelError(MceLlmError, RuntimeError):
    """A patched model was asked for something that the patch is in the way of; the message says what to do first."""


class InstanceForward:
    """The `forward` of one module, replaced from construction until `restore`.

    A hook of accelerate stays outermost, because it brings inputs and weights to the device of the computation; the
    replacement then stands in the place of the forward that the hook wraps.

    Attributes:
        module: The module.
        own: The forward that was found, bound to the module.

    Args:
        module: The module whose forward is replaced.
        function: Called with the module and the arguments of the forward.
    """

    def __init__(self, module: nn.Module, function: Callable[..., Any]) -> None:
        self.module = module
        attribute = wrapped_attribute(module)
        self._was_set = attribute in module.__dict__
        self.own: Callable[..., Any] = getattr(module, attribute)
        self._installed = types.MethodType(function, module)
        setattr(module, attribute, self._installed)

    def covered_by(self) -> str | None:
        """Where a forward comes from that was set on the instance since and hides the replacement; None without one."""
        present = self.module.__dict__.get("forward")
        if present is None or self._attribute() is not None:
            return None
        return _origin(present)

    def restore(self) -> None:
        """Put back the forward that was found, on the instance where it was set there; check `covered_by` first."""
        attribute = self._attribute()
        if attribute == "forward" and not self._was_set:
            del self.module.forward
        elif attribute is not None:
            setattr(self.module, attribute, self.own)

    def _attribute(self) -> str | None:
        """Where the replacement stands: a hook that was added or removed since has moved it."""
        for name in ("forward", _HOOKED):
            # Equal, not identical: accelerate's unwrapping binds the function to the module anew.
            if self.module.__dict__.get(name) == self._installed:
                return name
        return None


def _origin(function: Any) -> str:
    """File and line of a callable, or what it prints as; its name may be that of the forward that it wraps."""
    function = function.func if isinstance(function, functools.partial) else function
    code = getattr(function, "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code is not None else repr(function)


def wrapped_attribute(module: nn.Module) -> str:
    """The attribute that holds a module's forward without accelerate's hook, if it has one."""
    hooked = "_hf_hook" in module.__dict__ and _HOOKED in module.__dict__
    return _HOOKED if hooked else "forward"


def is_class_forward(module: nn.Module) -> bool:
    """Whether calling a module runs the forward of its class, with or without a hook of accelerate around it."""
    present = module.__dict__.get("forward")
    if present is None:
        return True
    if wrapped_attribute(module) == _HOOKED:
        inner = module.__dict__[_HOOKED]
        return getattr(present, "__wrapped__", None) == inner and _is_bound_class_forward(inner, module)
    return _is_bound_class_forward(present, module)


def _is_bound_class_forward(forward: Any, module: nn.Module) -> bool:
    return bool(forward == types.MethodType(type(module).forward, module))


def signature_of(module: nn.Module) -> inspect.Signature:
    """The parameters of a module's forward as callers see them, without the module itself.

    A wrapper that takes `*args` names none; what its class names is what it passes on.
    """
    found = inspect.signature(module.forward)
    if any(p.kind is p.VAR_POSITIONAL for p in found.parameters.values()):
        return inspect.signature(types.MethodType(type(module).forward, module))
    return found


def posing_as(module: nn.Module, function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a function of (module, …) the name, docstring and parameters of a module's forward; `Trainer` reads them."""
    signature = signature_of(module)
    # Not its other attributes: of a compiled forward they would lead torch.compile past the function.
    functools.update_wrapper(function, module.forward, updated=())
    # accelerate takes its mixed precision off by following `__wrapped__` to the end, and would go through this one.
    del function.__wrapped__  # type: ignore[attr-defined]
    first = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    parameters = [first, *signature.parameters.values()]
    function.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return function
