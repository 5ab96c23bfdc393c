"""The explorer in Chromium: what the browser computes is what torch computes, and what is clicked does what it says."""

import shutil
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest
import torch
from playwright.sync_api import sync_playwright
from torch import nn
from torch.distributions import Normal

from vaecli import cli
from vaecli.config.likelihoods import LIKELIHOODS
from vaecli.config.loading import parse_config
from vaecli.data.dataset import Dataset
from vaecli.data.image_grid import ImageShape
from vaecli.data.preprocess import Batch, build_preprocess
from vaecli.errors import UsageError
from vaecli.model.conditionals import Conditional
from vaecli.model.distributions import DiagonalNormal
from vaecli.model.estimators import expected_terms
from vaecli.model.links import SIGMOID
from vaecli.model.objectives import draw_noise
from vaecli.model.vae import VAE
from vaecli.randomness import generator
from vaecli.reports.explorer import DRAWS, explore
from vaecli.reports.in_browser import Arrays, Precision, choose_precision, describe_model
from vaecli.runs.run import load_run
from vaecli.training.loop import train

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
N = 20
"""Images that are compared."""
NETWORKS = (
    {"network": "mlp", "hidden_dim": [9, 8]},
    {"network": "mlp", "hidden_dim": 8, "activation": "gated", "normalization": "batch"},
    {"network": "conv", "channels": [3, 4], "hidden_dim": 8, "activation": "tanh"},
    {"network": "conv", "channels": [3, 4], "activation": "gated", "normalization": "layer", "mean": "linear"},
    {"network": "conv", "channels": 3, "hidden_dim": [], "normalization": "batch"},
    {"network": "mlp", "hidden_dim": 8, "normalization": "layer"},
)
LATENT = [
    (posterior, prior)
    for posterior in ("diagonal", "full", "flow", "iaf")
    for prior in ("standard", "mixture", "vamp", "flow")
]
EVERY = [
    *zip(LIKELIHOODS, NETWORKS, cycle(LATENT), strict=False),
    *zip(cycle(reversed(LIKELIHOODS)), cycle(({"sigma": 0.2},)), LATENT[len(LIKELIHOODS) :], strict=False),
]
"""Every decoder, every kind of layer, and every posterior with every prior."""


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser):
    """Opens a page, and afterwards checks that it asked for nothing and that nothing went wrong in it."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    requests, errors = [], []

    def open_page(path):
        page = context.new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.goto(path.as_uri())
        page.wait_for_selector("html.ready", timeout=30_000)
        opened.append(path.as_uri())
        return page

    opened: list[str] = []
    yield open_page
    context.close()
    assert [url for url in requests if not url.startswith("data:")] == opened
    assert errors == []


def bars(directory, channels=1):
    """90 images of 7 x 6 pixels, or in colour: a bright bar at one of six places, 20 of them for testing."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 60, (90, 7, 6, channels), dtype=np.uint8)
    for i, image in enumerate(pixels):
        image[:, i % 6] = 255 - image[:, i % 6]
    path = directory / f"bars{channels}.npz"
    np.savez(path, images=pixels if channels > 1 else pixels[..., 0], labels=np.arange(90) % 6)
    return {"name": str(path), "test": N}


def close(value, expected, tolerance=1e-3):
    found = torch.as_tensor(np.array(value, dtype=np.float64))
    assert found.shape == expected.shape
    assert (found - expected.double()).abs().max() <= tolerance


@pytest.mark.parametrize(("decoder", "network", "latent"), EVERY)
def test_the_browser_computes_what_torch_computes(small, tmp_path, open_page, decoder, network, latent):
    """To 10⁻³ in pixels and means of 20 images, and to 0.1 nats in bounds, by the same noise."""
    posterior, prior = latent
    data = bars(tmp_path, channels=3 if network.get("activation") == "gated" else 1)
    model = {
        "decoder": decoder,
        "latent_dim": 3,
        "posterior": posterior,
        "prior": prior,
        "prior_components": 4,
    } | network
    run = train(small(data=data, model=model, optimizer={"learning_rate": 0.02}), runs_dir=tmp_path)
    page = open_page(explore(run, tmp_path / "e.html"))
    images = Dataset(run.config.data, run.config.model.likelihood.support).test
    batch = build_preprocess(run.config.model.likelihood.support, run.config.data)(
        images.pixels, generator(run.config.seed, "evaluation")
    )
    noise = draw_noise(run.vae, batch, 4, torch.Generator().manual_seed(0))
    with torch.no_grad():
        q = run.vae.encoder(batch.input)
        p = run.vae.decoder(q.mean)
        bound = expected_terms(run.vae, batch, 4, torch.Generator().manual_seed(0), rows=1000)
        log_prior = run.vae.prior.log_prob(q.mean)
    found = page.evaluate(
        """({xs, noises}) => xs.map((x, i) => {
            const { model, images } = explorer, q = model.encode(x), p = model.decode(q.mean);
            return {
              mean: [...q.mean], stddev: [...q.stddev], pixels: [...p.mean()], deviations: [...p.stddev()],
              log_p: p.logProb(Float32Array.from(x)), log_prior: model.prior.logProb(q.mean),
              terms: noises.map((noise) => Object.values(model.terms(Float32Array.from(x), q, noise[i]))),
              stored: [...images.mean.subarray(i * q.mean.length, (i + 1) * q.mean.length)],
            };
        })""",
        {"xs": batch.input.tolist(), "noises": noise.tolist()},
    )
    column = {name: [one[name] for one in found] for name in found[0]}
    close(column["mean"], q.mean)
    close(column["stddev"], q.stddev)
    close(column["stored"], q.mean, 1e-6)
    close(column["pixels"], p.mean)
    close(column["deviations"], p.stddev)
    close(column["log_p"], p.log_prob(batch.target), 0.1)
    close(column["log_prior"], log_prior, 0.01)
    log_likelihood, kl = np.mean(column["terms"], 1).T
    close(log_likelihood, bound.log_likelihood, 0.1)
    close(kl, bound.kl, 0.1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on six bright bars in four latent dimensions."""
    directory = tmp_path_factory.mktemp("trained")
    values = {
        "data": bars(directory),
        "model": {"latent_dim": 4, "hidden_dim": 32},
        "training": {"epochs": 30, "batch_size": 10, "compile": "off"},
        "optimizer": {"learning_rate": 0.02},
        "device": "cpu",
    }
    return train(parse_config(values), runs_dir=directory)


@pytest.fixture
def run(trained):
    return load_run(trained.path)


@pytest.fixture
def page(run, tmp_path, open_page):
    return open_page(explore(run, tmp_path / "e.html"))


def until(page, expression):
    """Wait without the page's own `eval`, which its policy forbids."""
    for _ in range(200):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(20)
    pytest.fail(f"never: {expression}")


def settle(page):
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def z_of(page):
    settle(page)
    return page.evaluate("[...explorer.state.get('z')]")


def picture_of(page, canvas="decoded"):
    settle(page)
    return page.evaluate(
        "(id) => { const c = document.getElementById(id);"
        " return [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data].filter((_, i) => i % 4 === 0); }",
        canvas,
    )


def place_on_page(page, z):
    """Where z is on the map, in the page's pixels."""
    page.locator("#map").scroll_into_view_if_needed()
    box = page.locator("#map").bounding_box()
    x, y = page.evaluate("(z) => explorer.view().toCanvas(explorer.state.get('plane').project(z))", z)
    return box["x"] + x, box["y"] + y


def test_a_point_takes_the_mean_of_its_image_and_a_drag_moves_two_dimensions(page, run):
    means = page.evaluate("[...explorer.images.mean]")
    wanted = means[4 * 7 : 4 * 8]
    page.mouse.move(*place_on_page(page, wanted))
    assert page.locator("#tooltip").is_visible()
    page.mouse.down()
    page.mouse.up()
    chosen = page.evaluate("explorer.state.get('selected')")
    assert z_of(page) == means[4 * chosen : 4 * chosen + 4]
    expected = run.vae.decoder(torch.tensor(z_of(page))).mean
    close(np.array(picture_of(page)) / 255, expected, 0.5 / 255 + 1e-3)

    axes = page.evaluate("explorer.state.get('axes')")
    before = z_of(page)
    goal = [value + (0.7 if i in axes else 0.0) for i, value in enumerate(before)]
    page.mouse.move(*place_on_page(page, before))
    page.mouse.down()
    page.mouse.move(*place_on_page(page, goal), steps=5)
    page.mouse.up()
    assert z_of(page) == pytest.approx(goal, abs=0.02)
    close(np.array(picture_of(page)) / 255, run.vae.decoder(torch.tensor(z_of(page))).mean, 0.5 / 255 + 1e-3)


def test_all_is_done_by_keys_as_well(page):
    page.focus("#map")
    page.keyboard.press("Home")
    assert z_of(page) == [0, 0, 0, 0]
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Shift+ArrowUp")
    across, up = page.evaluate("explorer.state.get('axes')")
    moved = z_of(page)
    assert (moved[across], moved[up]) == pytest.approx((0.1, 0.5))
    assert "nearest is image" in page.locator("#status").inner_text()
    page.keyboard.press("Enter")
    assert page.evaluate("explorer.state.get('selected')") is not None
    slider = page.locator(".dimension input").first
    slider.focus()
    before = z_of(page)
    page.keyboard.press("ArrowRight")
    index = int(slider.get_attribute("data-index"))
    assert z_of(page)[index] == pytest.approx(before[index] + 0.01, abs=0.006)
    assert slider.get_attribute("aria-valuetext")


def test_a_drawing_is_encoded_as_it_grows_and_a_strange_one_is_found_improbable(page):
    pad = page.locator("#pad")
    pad.scroll_into_view_if_needed()
    box = pad.bounding_box()

    def draw(*places):
        page.click("#clear")
        x, y = ([box[side] + at * box[length] for at in along] for side, length, along in
                zip(("x", "y"), ("width", "height"), zip(*places, strict=True), strict=True))  # fmt: skip
        page.mouse.move(x[0], y[0])
        page.mouse.down()
        for place in zip(x[1:], y[1:], strict=True):
            page.mouse.move(*place, steps=4)
        encoded = picture_of(page, "seen")
        page.mouse.up()
        settle(page)
        until(page, "explorer.state.get('bound')?.of === explorer.state.get('drawn')")
        settle(page)
        assert sum(encoded) > 0  # while the pointer was down
        return page.evaluate(
            "(({ logLikelihood, kl }) => logLikelihood - kl)(explorer.state.get('bound'))"
        ), page.locator("#verdict").inner_text()

    bar, said_of_bar = draw((0.58, 0.02), (0.58, 0.98))
    page.locator("#brush").fill("1")
    cross, said_of_cross = draw((0.1, 0.1), (0.9, 0.9), (0.5, 0.5), (0.9, 0.1), (0.1, 0.9))
    assert bar > cross + 10
    assert "higher than" in said_of_bar
    assert "improbable" in said_of_cross
    page.click("#clear")
    until(page, "explorer.state.get('bound') === null")


def test_a_drawing_is_centred_and_scaled_as_mnists_digits_are(page):
    """A small line far off becomes one of 20 of 28 pixels, its centre of mass in the middle."""
    rows, columns, total = page.evaluate(
        """() => {
            const shape = { height: 28, width: 28, channels: 1 };
            const stroke = { points: [[0.8, 0.1], [0.8, 0.4]], radius: 1.25, colour: [255] };
            const pixels = explorer.rasterise(explorer.centre([stroke], shape), shape);
            const lit = [...pixels.keys()].filter((i) => pixels[i]);
            return [lit.map((i) => Math.floor(i / 28)), lit.map((i) => i % 28), pixels.length];
        }"""
    )
    assert total == 784
    assert (min(rows), max(rows)) == (4, 23)
    assert (min(columns) + max(columns)) / 2 == 13.5


def test_views_pins_and_the_drawer_do_what_they_say(page, run):
    page.check("input[value=stddev]", force=True)
    deviations = page.evaluate("[...explorer.state.get('likelihood').stddev()]")
    close(np.array(picture_of(page)) / 255, torch.tensor(deviations) / max(deviations), 0.5 / 255 + 1e-3)
    page.click("#again")
    assert set(picture_of(page)) <= {0, 255}  # draws of a Bernoulli
    page.click("#sample")
    sampled = z_of(page)
    page.click("#pin-b")
    page.click("#reset")
    page.click("#pin-a")
    page.locator("#way").fill("0.25")
    assert z_of(page) == pytest.approx([0.25 * value for value in sampled], abs=1e-6)
    page.click("#play")
    until(page, "explorer.state.get('z').some((value, i) => Math.abs(value) > 1e-3)")
    page.click("#play")
    across, up = page.evaluate("explorer.state.get('axes')")
    page.select_option("#axis-x", str(up))
    assert page.evaluate("explorer.state.get('axes')") == [up, across]  # no plane has the same dimension twice
    page.select_option("#axes-kind", "components")
    page.click("#pictures")
    until(page, "explorer.state.get('pictures')?.decoded > 20")
    page.click("#theme")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.click("#open-run")
    assert "hidden_dim: 32" in page.locator("#config").inner_text()
    assert f"{run.metrics[-1]['elbo']:.2f}".replace("-", "−") in page.locator("#figures").inner_text()
    page.keyboard.press("Escape")
    assert not page.locator("#run").is_visible()


def test_it_fits_a_phone(run, browser, tmp_path):
    path = explore(run, tmp_path / "e.html")
    context = browser.new_context(viewport={"width": 360, "height": 740}, is_mobile=True, has_touch=True)
    page = context.new_page()
    page.goto(path.as_uri())
    page.wait_for_selector("html.ready")
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    before = z_of(page)
    page.touchscreen.tap(*place_on_page(page, [0.3, -0.2, 0.3, -0.2]))
    assert z_of(page) != before
    context.close()


def test_names_from_a_run_are_text_and_nothing_else(small, tmp_path, open_page):
    hostile = "<!--<script>alert(1);\u2028&amp;"
    path = tmp_path / hostile / "</script><script>document.title=1</script>".replace("/", "\u2215") / "<\u2028>.npz"
    path.parent.mkdir(parents=True)
    Path(bars(tmp_path)["name"]).rename(path)
    run = train(small(data={"name": str(path), "test": N}, training={"epochs": 1}), runs_dir=tmp_path / "r")
    named = tmp_path / "r" / "x" / "<img src=x onerror=alert(2)>"
    named.parent.mkdir()
    run.path.rename(named)
    page = open_page(explore(load_run(named)))
    assert page.title() == "<img src=x onerror=alert(2)> – VAE explorer"
    page.click("#open-run")
    assert hostile in page.locator("#figures").inner_text()


def test_half_precision_is_chosen_where_nothing_changes_by_it(run):
    images = Dataset(run.config.data, run.config.model.likelihood.support).test
    batch = Batch(images.pixels / 255, (images.pixels > 127).float())
    assert choose_precision(run.vae, batch) == Precision(encoder=True, decoder=True)
    with torch.no_grad():
        run.vae.encoder.network[0].weight.mul_(1000)
        run.vae.decoder.network[-1].weight.mul_(1e7)  # beyond the largest half, 65504
    assert choose_precision(run.vae, batch) == Precision(encoder=False, decoder=False)


def test_a_layer_without_a_counterpart_is_named(run):
    run.vae.decoder.network[1] = nn.Softsign()
    with pytest.raises(UsageError, match="a layer, Softsign, has no counterpart in the browser"):
        describe_model(run.vae, ImageShape(1, 7, 6), Precision(encoder=False, decoder=False), Arrays())


def test_a_gaussian_of_ones_own_needs_no_counterpart_and_a_distribution_of_ones_own_does(run):
    class Tight(Conditional):
        n_params = 1
        link = SIGMOID

        def distribution(self, output):
            return DiagonalNormal(self.link.mean(output), output.new_full((), -2.3))

    class Wide(Tight):
        def distribution(self, output):
            return Normal(output, 1.0)

    def described(decoder):
        vae = VAE(run.vae.encoder, decoder(run.vae.decoder.network), run.vae.prior)
        model = describe_model(vae, ImageShape(1, 7, 6), Precision(encoder=False, decoder=False), Arrays())
        return model["decoder"]["likelihood"]

    scale = {"slope": 0, "offset": pytest.approx(-2.3), "floor": None}
    assert described(Tight) == {"type": "normal", "link": "sigmoid", "log_scale": scale}
    with pytest.raises(UsageError, match="the decoder, Wide, has no counterpart in the browser"):
        described(Wide)


def test_the_command_writes_into_the_run_and_prints_the_path(run, monkeypatch, capsys):
    for arguments, code in ([], 0), (["--out", "explorer.pdf"], 2):
        monkeypatch.setattr("sys.argv", ["vae", "explore", "--ckpt", str(run.path), *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert (ended.value.code or 0) == code
    said = capsys.readouterr()
    assert said.out == f"{run.path / 'explorer.html'}\n"
    assert "must end in .html" in said.err
    assert f'"draws":{DRAWS}' in (run.path / "explorer.html").read_text()
