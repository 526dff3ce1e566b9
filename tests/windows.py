"""The explorer in a real browser: what its tests share."""
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RUN = 'import sys; from skyseek.pipeline.cli import main; sys.exit(main())'


class Window:
    "A browser window with the explorer."
    def __init__(self, browser, address, width=1400, height=1000, scale=1):
        self.page, self.errors = browser.new_page(viewport=dict(width=width, height=height), device_scale_factor=scale), []
        self.page.on('pageerror', lambda e: self.errors.append(str(e)))
        self.page.set_default_timeout(20_000)
        self.page.goto(address)
        self.says(' inspected')

    def says(self, text): self.page.get_by_text(text).first.wait_for()

    def press(self, keys, *answers):
        for key in keys.split(): self.page.keyboard.press(key)
        for text in answers: self.says(text)

    def field(self, label): return self.page.get_by_label(label, exact=True)

    def button(self, name): self.page.get_by_role('button', name=name, exact=True).click()

    def target(self): return int(self.page.locator('.object b').first.inner_text())

    def figure(self, n):
        box = self.page.locator('.bk-Figure').nth(n).bounding_box()
        return lambda x, y: (box['x'] + x*box['width'], box['y'] + y*box['height'])

    def type_into(self, field, text):
        field.fill(text)
        field.press('Enter')
        time.sleep(.2)


def serve(catalogue, inspector='me'):
    "The command in a process of its own, and its address."
    words = [sys.executable, '-c', RUN, 'explore', str(catalogue), '--no-browser', '--port', '0', '--inspector', inspector]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    return process, process.stdout.readline().strip()
