"""Small files in DESI's formats, for tests that spoil them."""
import numpy as np
from astropy.io import fits
from astropy.table import Table

ARMS = {'B': (3600, 2751), 'R': (5760, 2326), 'Z': (7520, 2881)}  # first wavelength in Å, pixels


def coadd_parts(n=4, seed=0):
    "HDUs of a sound coadd by name: flux 1 with σ 0.5, a tenth of the blue pixels masked."
    rng = np.random.default_rng(seed)
    fibermap = Table({'TARGETID': 39628000000000000 + np.arange(n), 'COADD_FIBERSTATUS': np.zeros(n, 'i4'), 'OBJTYPE': ['TGT']*n,
                      'COADD_EXPTIME': np.full(n, 1000, 'f4')})
    parts = {'FIBERMAP': fibermap}
    for arm, (first, pixels) in ARMS.items():
        parts[f'{arm}_WAVELENGTH'] = first + .8*np.arange(pixels)
        parts[f'{arm}_FLUX'] = rng.normal(1, .5, (n, pixels)).astype('f4')
        parts[f'{arm}_IVAR'] = np.full((n, pixels), 4, 'f4')
        parts[f'{arm}_MASK'] = (rng.random((n, pixels)) < .1*(arm == 'B')).astype('u4')
    parts['SCORES'] = Table({'TARGETID': fibermap['TARGETID']} | {f'MEDIAN_COADD_SNR_{arm}': np.full(n, 2, 'f4') for arm in ARMS})
    return parts


def redrock_table(targetid):
    "Answers of a redrock that finds everything at z = row number / 10."
    n = len(targetid)
    return Table(dict(TARGETID=targetid, Z=np.arange(n)/10, ZERR=np.full(n, 1e-4), ZWARN=np.zeros(n, 'i8'), CHI2=np.full(n, 7900.), COEFF=np.ones((n, 10)),
                      NPIXELS=np.full(n, 7900), SPECTYPE=['GALAXY']*n, SUBTYPE=['']*n, NCOEFF=np.full(n, 10), DELTACHI2=np.full(n, 50.)))


def write_parts(path, parts):
    "Write HDUs, arrays or tables, in the order given."
    hdus = [fits.BinTableHDU(a, name=k) if isinstance(a, Table) else fits.ImageHDU(a, name=k) for k, a in parts.items()]
    fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(path, overwrite=True)
    return path


def write_coadd(path, n=4, without=(), **changes):
    "A coadd with some HDUs left out or replaced."
    return write_parts(path, {k: v for k, v in (coadd_parts(n) | changes).items() if k not in without})


def write_pair(folder, n=4):
    "A coadd and the redrock file beside it."
    parts = coadd_parts(n)
    write_parts(folder/'redrock-main-dark-9999.fits', {'REDSHIFTS': redrock_table(parts['FIBERMAP']['TARGETID'])})
    return write_parts(folder/'coadd-main-dark-9999.fits', parts)
