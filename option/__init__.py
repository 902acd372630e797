"""Options: YAML files in the published layout, checked by a schema. `load_options(path, overrides) -> Options`."""

from option.load import load_options, save_options
from option.options import Options

__all__ = ["Options", "load_options", "save_options"]
