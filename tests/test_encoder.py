"""The trained encoder is the same network as its modules, and what is stored in float16 loses nothing."""
import json
from shutil import copytree

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from skyseek.data.spectra import wave_desi
from skyseek.learn.autoencoder import Autoencoder, Encoder, EncoderSettings, as_published, encode
from skyseek.learn.features import build_features, fill_masked, input_channels
from skyseek.learn.training import ArrayStream, fingerprint, load_model, read_config, round_weights, save_model, shipped
from skyseek.pipeline.score import load_weights, score_spectra
from skyseek.redshift.scan import scan_redshift
from skyseek.simulate.mock_survey import simulate_spectra

PARTS = 'flux', 'weight', 'scale', 'exptime'


@pytest.fixture(scope='module')
def spectra(): return simulate_spectra(20, seed=6)[0]


@pytest.fixture(scope='module')
def batch(spectra):
    features = build_features(spectra)
    weight = features['weight'].copy()
    weight[0], weight[1, :900], weight[2, 5000:] = 0, 0, 0
    return {k: torch.as_tensor(np.asarray(v, np.float32)) for k, v in (features | dict(weight=weight)).items() if k in PARTS}


def by_modules(encoder, batch):
    """Latents by the modules of the encoder one after the other, the whole batch at once."""
    x = input_channels(*(batch[k] for k in PARTS), encoder.settings.channels)
    for conv, norm in ((encoder.conv1, encoder.norm1), (encoder.conv2, encoder.norm2)): x = torch.relu(norm(conv(x)))
    tokens = encoder.transformer(encoder.embed(x.transpose(1, 2)) + encoder.positions)
    return (((tokens @ encoder.query)/encoder.settings.latent**.5).softmax(1)[:, None] @ tokens)[:, 0]


@pytest.mark.parametrize('settings', [EncoderSettings(), EncoderSettings(latent=32, heads=2, strides=(3, 5), layers=1), as_published(strides=(8, 16))],
                         ids=['default', 'other widths', 'published input'])
def test_the_trained_encoder_is_its_modules(batch, settings):
    torch.manual_seed(1)
    encoder = Encoder(settings).train()
    with torch.no_grad():
        for _ in range(5): encoder(batch)  # the normalisations see data
        encoder.eval()
        torch.testing.assert_close(encoder(batch), by_modules(encoder, batch), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(encoder({k: v[:1] for k, v in batch.items()}), encoder(batch)[:1], rtol=1e-4, atol=1e-5)


def test_the_shipped_encoder_is_its_modules_and_has_their_gradients(batch):
    encoder = load_model(shipped('autoencoder'), Autoencoder).encoder
    slopes = []
    for code in (encoder, lambda b: by_modules(encoder, b)):
        flux = batch['flux'].clone().requires_grad_()
        latent = code(batch | dict(flux=flux))
        latent.square().sum().backward()
        slopes.append((latent.detach(), flux.grad))
    for a, b in zip(*slopes): torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5*float(b.abs().max()))


def test_channels_are_those_of_a_plain_definition(batch):
    flux, weight, good = batch['flux'].numpy().astype(float), batch['weight'].numpy().astype(float), batch['weight'].numpy() > 0
    found = input_channels(*(batch[k] for k in PARTS)).numpy()
    for row in range(1, 8):
        pixels, some = np.arange(flux.shape[1]), np.flatnonzero(good[row])
        for k, y in enumerate((flux[row]*np.sqrt(weight[row]), flux[row])):
            np.testing.assert_allclose(found[row, k], np.arcsinh(np.interp(pixels, some, y[some])), rtol=2e-5, atol=2e-6)
    assert np.isfinite(found).all()
    both = torch.stack([batch['flux'], 2*batch['flux']], 1)
    mask = batch['weight'] > 0
    torch.testing.assert_close(fill_masked(both, mask[:, None]), fill_masked(both, mask[:, None].expand(-1, 2, -1)), rtol=0, atol=0)


def test_the_shipped_decoder_is_stored_in_float16_and_loaded_as_it_was_saved(tmp_path):
    stored, model = load_file(shipped('autoencoder')/'model.safetensors'), load_model(shipped('autoencoder'), Autoencoder)
    assert {v.dtype for k, v in stored.items() if k.startswith('decoder')} == {torch.float16}
    assert {v.dtype for k, v in stored.items() if k.startswith('encoder') and v.is_floating_point()} == {torch.float32}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    for name in ('classifier', 'familiarity', 'anomaly'): assert read_config(shipped(name))['extra']['autoencoder'] == fingerprint(model)
    again = load_model(save_model(model, tmp_path/'autoencoder'), Autoencoder)
    assert fingerprint(again) == fingerprint(model)
    assert (tmp_path/'autoencoder/model.safetensors').stat().st_size < 9e6


def test_weights_of_users_are_saved_as_they_are_unless_rounded(tmp_path):
    torch.manual_seed(0)
    model = Autoencoder(wave_desi())
    own = fingerprint(model)
    loaded = load_model(save_model(model, tmp_path/'whole'), Autoencoder)
    assert fingerprint(model) == fingerprint(loaded) == own
    before = {k: v.clone() for k, v in model.state_dict().items()}
    rounded = load_model(save_model(round_weights(model), tmp_path/'rounded'), Autoencoder)
    assert fingerprint(rounded) == fingerprint(model) != own
    size = lambda name: (tmp_path/name/'model.safetensors').stat().st_size
    assert size('rounded') < .55*size('whole')
    for name, v in model.state_dict().items():
        if name.startswith('decoder'): assert (v - before[name]).abs().max() <= before[name].square().mean().sqrt()/128
        else: assert torch.equal(v, before[name])
    model.decoder[0].weight.data[0, 0] = 1e6  # too large for float16: left as it is
    assert load_model(save_model(round_weights(model), tmp_path/'large'), Autoencoder).decoder[0].weight[0, 0] == 1e6


def test_folders_in_float32_and_rounding_change_nothing_that_matters(spectra, tmp_path):
    """A folder as it was before, its decoder in float32 and off by what rounding took: the same flags, scores and χ²."""
    folder = copytree(shipped(), tmp_path/'weights')
    stored = {k: v.float() if v.dtype == torch.float16 else v for k, v in load_file(folder/'autoencoder/model.safetensors').items()}
    last, noise = stored['decoder.4.weight'], torch.Generator().manual_seed(0)
    last += (torch.rand(last.shape, generator=noise) - .5)/4096
    save_file(stored, folder/'autoencoder/model.safetensors')
    model = load_model(folder/'autoencoder', Autoencoder)
    for name in ('classifier', 'familiarity', 'anomaly'):
        config = json.loads((folder/name/'config.json').read_text(encoding='utf-8'))
        config['extra']['autoencoder'] = fingerprint(model)
        (folder/name/'config.json').write_text(json.dumps(config), encoding='utf-8')
    arrays = {k: v for k, v in build_features(spectra).items() if k in PARTS}
    codes = [encode(m, ArrayStream(arrays, 20, shuffle=False)) for m in (model, load_model(shipped('autoencoder'), Autoencoder))]
    np.testing.assert_array_equal(codes[0]['latent'], codes[1]['latent'])
    answers = scan_redshift(spectra).to_table()
    for name in answers.colnames: spectra.meta[name] = answers[name]
    before, now = (score_spectra(spectra, load_weights(f)) for f in (folder, None))
    np.testing.assert_allclose(now['RECON_CHI2'], before['RECON_CHI2'], rtol=1e-3)
    for name in now.colnames:
        if name.startswith('ODD_') or name == 'ANOMALY': np.testing.assert_allclose(now[name], before[name], atol=3e-3, err_msg=name)
        elif name.startswith(('FLAG', 'CAUSE', 'NATURE', 'P_')): np.testing.assert_array_equal(now[name], before[name], err_msg=name)
