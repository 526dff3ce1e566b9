"""Finds the objects whose redshift or spectral type a survey pipeline got wrong.

The names in `__all__` are imported on first use: `from skyseek import read, score` loads no more than these need.
"""
__version__ = "0.1.0"

import builtins
from importlib import import_module

_PLACES = {
    'data.spectra': ('Spectra', 'concatenate', 'resample'),
    'data.read': ('read_any',),
    'data.redshift_tables': ('read_truth',),
    'data.truth': ('label_wrong', 'match_truth'),
    'data.plots': ('plot_spectrum',),
    'simulate.mock_survey': ('simulate_spectra', 'simulate_survey'),
    'redshift.scan': ('scan_redshift',),
    'redshift.second_look': ('second_look',),
    'detect.guarantee': ('keep_sample',),
    'explain.causes': ('name_causes',),
    'explain.inspect': ('Evidence', 'plot_evidence'),
    'anomaly.rerank': ('rank_catalogue',),
    'pipeline.score': ('Weights', 'load_weights', 'score_spectra'),
    'pipeline.catalogue': ('make_catalogue', 'read_catalogue', 'score', 'write_catalogue'),
    'pipeline.explorer': ('explore',),
}  # module: what it hands out here
_ALIASES = {'read': 'read_any'}
_MODULE = {name: module for module, names in _PLACES.items() for name in names}
__all__ = sorted([*_MODULE, *_ALIASES])


def __getattr__(name):
    real = _ALIASES.get(name, name)
    if real not in _MODULE:
        raise AttributeError(f"module 'skyseek' has no attribute {name!r}; it hands out {', '.join(__all__)}")
    from .pipeline.help import document
    found = document(getattr(import_module(f'.{_MODULE[real]}', __name__), real))
    globals()[name] = found
    return found


def __dir__():
    return sorted([*globals(), *__all__])


if hasattr(builtins, '__IPYTHON__'):
    from .pipeline.help import document_imports
    document_imports()
