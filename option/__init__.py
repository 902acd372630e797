"""Options: YAML files in the published layout, checked by a schema. `load_options(path, overrides) -> Options`."""

from option.options import Options, load_options

__all__ = ["Options", "load_options"]
