"""Real spectra of SDSS, BOSS and LAMOST with the best redshift that is known, as the scripts beside this one read them."""

import numpy as np
from astropy.table import Table

from skyseek.data.read import read_singles
from skyseek.data.spectra import concatenate, resample

KEEP = ['TARGETID', 'Z', 'ZERR', 'ZWARN', 'CHI2', 'NPIXELS', 'SPECTYPE', 'SUBTYPE', 'DELTACHI2', 'COEFF', 'TRUE_Z', 'TRUE_SPECTYPE', 'TRUE_SUBTYPE', 'FLAGS', 'INSTRUMENT']


def lean(spectra):
    meta = Table({c: spectra.meta[c] if c in spectra.meta.colnames else np.full(len(spectra), '') for c in KEEP})
    return spectra.replace(meta=meta)


def survey_spectra(data, wave):
    """Real spectra of SDSS, BOSS and LAMOST with the best redshift that is known, one object on one side of every split."""
    out = []
    for folder, name in (('sdss', 'sdss/catalogue.csv'), ('real2', 'real2/catalogue.csv')):
        table = Table.read(data/name)
        text_of = lambda c: np.array([str(x) for x in np.ma.filled(table[c].astype(str), '')])
        if folder == 'sdss':
            tag, z, kind = text_of('tag'), text_of('z_best'), text_of('CLASS')
            sky = tag == 'SKY_FIBRE'
            keep = ~np.char.startswith(tag, 'TRUNC') & (sky | ~np.isin(z, ('', 'nan', '--', 'N/A'))) & (sky | (text_of('ZWARNING') == '0'))
            repeat = np.flatnonzero(tag == 'RM017_repeat_epoch')
            keep[repeat[6:]] = False
            kind = np.where(sky, 'SKY', kind)
            paths = [next((data/folder).rglob(str(f))) for f in table['file']]
        else:
            survey, z, kind, zw = text_of('survey'), text_of('z'), text_of('class'), text_of('zwarning')
            keep, paths = (survey != 'DESI') & (np.isin(zw, ('0', '', 'N/A', '--')) | (text_of('z_source') == 'human')), [data/folder/f for f in table['file']]
            keep &= np.isin(kind, ('GALAXY', 'QSO', 'STAR'))
        rows = np.flatnonzero(keep)
        parts, order = [], []
        for part in (rows[[str(paths[i]).find('lamost') < 0 for i in rows]], rows[[str(paths[i]).find('lamost') >= 0 for i in rows]]):
            if len(part):
                spectra, lost = read_singles([paths[i] for i in part])
                order += [i for i in part if str(paths[i]) not in lost]
                spectra = resample(spectra, wave, share_ivar=True)
                for c in KEEP:
                    if c not in spectra.meta.colnames:
                        spectra.meta[c] = np.zeros((len(spectra), 10)) if c == 'COEFF' else np.zeros(len(spectra))
                ra, dec = (np.nan_to_num(np.asarray(spectra.meta[c], float)) for c in ('TARGET_RA', 'TARGET_DEC'))
                spectra.meta['TARGETID'] = np.round(ra*200).astype(np.int64)*100000 + np.round((dec + 90)*200).astype(np.int64) + (1 << 59)
                parts.append(lean(spectra))
        rows, spectra = np.array(order), concatenate(parts)
        meta = spectra.meta
        meta['TRUE_Z'] = np.array([float(x) if k != 'SKY' else 0. for x, k in zip(z[rows], kind[rows])])
        meta['TRUE_SPECTYPE'], meta['TRUE_SUBTYPE'], meta['FLAGS'] = kind[rows], np.full(len(rows), ''), np.full(len(rows), folder.upper())
        seen = spectra.good.any(1)
        out.append(spectra[seen])
    return concatenate(out)
