"""One declaration for each setting: its default, allowed values, unit and meaning.

Validation (`Group`), `--help` and docs/reference/config.md all read this declaration.
"""

import dataclasses
import math
from typing import ClassVar

from sora_jax.core.errors import InputError, did_you_mean

DTYPES = ("bfloat16", "float32")


@dataclasses.dataclass(frozen=True)
class Declaration:
    """The meaning and the allowed values of a setting; of a tuple, the values of each item.

    Args:
      meaning: one sentence.
      unit: of the value; "" for a name, a path or a pure number.
      min, max: bounds, themselves allowed; None: no bound.
      above: a lower bound that is itself not allowed.
      choices: the only values allowed; (): all.
    """

    meaning: str
    unit: str = ""
    min: float | None = None
    max: float | None = None
    above: float | None = None
    choices: tuple[str, ...] = ()

    @property
    def range(self) -> str:
        """The allowed values in words; "" if all are."""
        if self.choices:
            return ", ".join(choice or "empty" for choice in self.choices)
        if self.max is not None:
            return f"from {self.min:g} to {self.max:g}"
        if self.above is not None:
            return f"above {self.above:g}"
        return "" if self.min is None else f"at least {self.min:g}"

    def check(self, value, where: str):
        """Raise InputError, which begins with `where`, for a value that is not allowed."""
        for item in value if isinstance(value, tuple) else (value,):
            if self.choices and item not in self.choices:
                raise InputError(f"{where}: {item!r}? {did_you_mean(item, self.choices)}")
            if isinstance(item, float) and not math.isfinite(item):
                raise InputError(f"{where}: {value} is not a finite number")
            low = self.min is not None and item < self.min
            low = low or (self.above is not None and item <= self.above)
            if low or (self.max is not None and item > self.max):
                raise InputError(f"{where}: {value} must be {self.range}")


def field(default, meaning: str, **allowed):
    """A dataclass field with its declaration; `allowed`: the other arguments of `Declaration`."""
    return dataclasses.field(default=default, metadata={"declaration": Declaration(meaning, **allowed)})


def declarations(group) -> dict[str, Declaration]:
    """The declared settings of a group, or of its class, by name."""
    return {
        field.name: field.metadata["declaration"]
        for field in dataclasses.fields(group)
        if "declaration" in field.metadata
    }


class Group:
    """Settings that belong together; their values are checked whenever they are made."""

    where: ClassVar[str]  # their place in the config, for errors

    def __post_init__(self):
        for name, declaration in declarations(self).items():
            declaration.check(getattr(self, name), f"{self.where}.{name}")
        self.check()

    def check(self):
        """Raise InputError for settings that do not go together."""
