"""Builds skyseek from `settings.ini`, the one place where version, requirements and entry points are written."""
import shutil
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.sdist import sdist

HERE = Path(__file__).resolve().parent
LICENSES = {'bsd3': 'BSD-3-Clause'}
STATUS = {'1': '1 - Planning', '2': '2 - Pre-Alpha', '3': '3 - Alpha', '4': '4 - Beta', '5': '5 - Production/Stable'}


def read_settings(path):
    "The `[DEFAULT]` section of an nbdev `settings.ini`; requirements hold `>=`, so only `=` after a key delimits."
    parser = ConfigParser(delimiters=['='])
    parser.read(path, encoding='utf-8')
    return parser['DEFAULT']


def read_extras(cfg):
    "Every `NAME_requirements` key becomes the extra `[NAME]`."
    suffix = '_requirements'
    return {key[:-len(suffix)]: cfg[key].split() for key in cfg if key.endswith(suffix)}


class SelfContainedSdist(sdist):
    "An sdist that carries `settings.ini`, without which it could not be installed."
    def make_release_tree(self, base_dir, files):
        super().make_release_tree(base_dir, files)
        for name in ('settings.ini', 'CHANGELOG.md'):
            shutil.copy2(HERE / name, base_dir)


cfg = read_settings(HERE / 'settings.ini')
readme = HERE / 'README.md'

setup(
    name=cfg['lib_name'],
    version=cfg['version'],
    description=cfg['description'],
    long_description=readme.read_text(encoding='utf-8') if readme.exists() else cfg['description'],
    long_description_content_type='text/markdown',
    keywords=cfg['keywords'],
    author=cfg['author'],
    author_email=cfg['author_email'],
    license=LICENSES[cfg['license']],
    url=cfg['git_url'],
    project_urls={'Documentation': cfg['doc_host'] + cfg['doc_baseurl']},
    classifiers=[
        f"Development Status :: {STATUS[cfg['status']]}",
        f"Intended Audience :: {cfg['audience']}",
        f"Natural Language :: {cfg['language']}",
        'Operating System :: OS Independent',
        'Programming Language :: Python :: 3',
        *(f'Programming Language :: Python :: {v}' for v in cfg['python_versions'].split()),
        'Topic :: Scientific/Engineering :: Astronomy',
    ],
    python_requires=f">={cfg['min_python']}",
    packages=find_packages(include=[cfg['lib_path'], f"{cfg['lib_path']}.*"]),
    package_data={cfg['lib_path']: ['py.typed'] + [f'weights/**/*.{ext}' for ext in ('safetensors', 'json', 'md')]},
    install_requires=cfg['requirements'].split(),
    extras_require=read_extras(cfg),
    entry_points={'console_scripts': cfg['console_scripts'].split(),
                  'nbdev': [f"{cfg['lib_path']}={cfg['lib_path']}._modidx:d"]},
    cmdclass={'sdist': SelfContainedSdist},
    zip_safe=False,
)
