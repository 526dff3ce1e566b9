"""Small files in the formats of DESI, SDSS and LAMOST, for tests that spoil them."""
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


def sdss_parts(n=3800, first=35800, plate=266, mjd=51602, fibre=1, seed=0):
    "HDUs of a sound SDSS spec file: flux 1 with σ 0.2, bright sky in pixels 3000 to 3009."
    flags = np.where((np.arange(n) >= 3000) & (np.arange(n) < 3010), 1 << 23, 0).astype('i4')
    coadd = Table({'flux': np.random.default_rng(seed).normal(1, .2, n).astype('f4'), 'loglam': (1e-4*(first + np.arange(n))).astype('f4'),
                   'ivar': np.full(n, 25, 'f4'), 'and_mask': flags, 'or_mask': flags})
    answer = Table({'PLATE': [plate], 'MJD': [mjd], 'FIBERID': [fibre], 'CLASS': ['GALAXY'], 'SUBCLASS': [''], 'Z': np.array([.1], 'f4'), 'Z_ERR': np.array([1e-5], 'f4'),
                    'ZWARNING': np.array([4], 'i4'), 'RCHI2': np.array([1.1], 'f4'), 'RCHI2DIFF': np.array([.01], 'f4'), 'DOF': [n], 'SOURCETYPE': ['GALAXY'],
                    'PLUG_RA': [10.], 'PLUG_DEC': [-1.], 'SN_MEDIAN_ALL': np.array([5], 'f4')})
    return {'COADD': coadd, 'SPECOBJ': answer}


def write_sdss(folder, fibre=1, without=(), header=None, coadd=None, answer=None, **options):
    "An SDSS spec file with HDUs left out, columns of COADD or SPECOBJ replaced, or primary keywords set."
    path, parts = folder/f'spec-0266-51602-{fibre:04d}.fits', sdss_parts(fibre=fibre, seed=fibre, **options)
    for table, changes in ((parts['COADD'], coadd), (parts['SPECOBJ'], answer)):
        for name, values in (changes or {}).items(): table[name] = values
    write_parts(path, {k: v for k, v in parts.items() if k not in without})
    for key, value in (header or {}).items(): fits.setval(path, key, value=value)
    return path


def write_lamost(folder, obsid=701001, table=False, n=3900, **header):
    "A LAMOST spectrum, image of five rows or table: flux 100 with σ 5, fifteen pixels of padding at each end."
    flux, ivar, wave, good = np.random.default_rng(obsid).normal(100, 5, n), np.full(n, .04), 10**(3.5682 + 1e-4*np.arange(n)), np.zeros(n)
    flux[:15] = flux[-15:] = 0
    cards = dict(TELESCOP='LAMOST', OBSID=obsid, CLASS='STAR', SUBCLASS='G7', Z=1e-4, Z_ERR=1e-5, FIBERTYP='Obj', VACUUM=True, COEFF0=3.5682, COEFF1=1e-4) | header
    image = None if table else np.stack([flux, ivar, wave, good, good]).astype('f4')
    vectors = Table({k: np.asarray(a, 'f4')[None] for k, a in dict(FLUX=flux, IVAR=ivar, WAVELENGTH=wave, ANDMASK=good, ORMASK=good).items()})
    path = folder/f'spec-55862-B6202_sp01-{obsid}.fits'
    fits.HDUList([fits.PrimaryHDU(image, fits.Header(cards)), *[fits.BinTableHDU(vectors, name='COADD')]*table]).writeto(path, overwrite=True)
    return path
