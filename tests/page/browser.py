"""A real Chromium that notes what must not happen: violations of the policy, errors of the script, dialogs."""

import json
import os
from pathlib import Path

from selenium import webdriver
from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from parts import Failed, holds, within

AXE = Path(os.environ["AXE"]).read_text(encoding="utf-8")

# The rules of WCAG 2.2 up to AA, and axe's own best practices.
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]

# Runs in every document before its own script.
WATCHER = """
window.noted = [];
document.addEventListener("securitypolicyviolation", (event) =>
    noted.push(`policy: ${event.violatedDirective} ${event.blockedURI} ${event.sourceFile}:${event.lineNumber}`));
addEventListener("error", (event) => noted.push(`error: ${event.message} ${event.filename}:${event.lineno}`));
addEventListener("unhandledrejection", (event) => noted.push(`rejection: ${event.reason}`));
for (const name of ["alert", "confirm", "prompt", "pwned"])
    window[name] = () => noted.push(`called: ${name}`);
window.longest = 0;
new PerformanceObserver((list) => {
    for (const task of list.getEntries()) longest = Math.max(longest, task.duration);
}).observe({ type: "longtask", buffered: true });
"""


class Browser:
    """One window. Its methods wait for what must come, for a minute at the most."""

    def __init__(self):
        options = webdriver.ChromeOptions()
        options.binary_location = "/usr/bin/chromium"
        for argument in [
            "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--no-proxy-server", "--lang=en-US",
            # No request leaves this machine.
            "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1 , EXCLUDE localhost",
            "--force-color-profile=srgb", "--hide-scrollbars",
        ]:
            options.add_argument(argument)
        self.driver = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
        self.driver.set_page_load_timeout(60)
        self.driver.set_script_timeout(60)
        self.command("Page.addScriptToEvaluateOnNewDocument", source=WATCHER)
        self.command("Emulation.setTimezoneOverride", timezoneId="UTC")
        self.expected = []
        self.size(1280, 900)

    def quit(self):
        self.driver.quit()

    def command(self, name, **parameters):
        return self.driver.execute_cdp_cmd(name, parameters)

    def size(self, width, height):
        self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def prefers(self, **features):
        listed = [{"name": f"prefers-{name.replace('_', '-')}", "value": value} for name, value in features.items()]
        self.command("Emulation.setEmulatedMedia", features=listed)

    def script(self, text, *arguments):
        return self.driver.execute_script(text, *arguments)

    def open(self, address):
        self.check()
        self.driver.get(address)

    def check(self):
        """Nothing was noted since the document was opened."""
        noted = self.script("return window.noted || []")
        noted = [text for text in noted if not any(part in text for part in self.expected)]
        holds(f"nothing was noted: {noted}", not noted)

    def texts(self, selector):
        """The visible texts of all elements that fit."""
        return self.script(
            "return [...document.querySelectorAll(arguments[0])].map((node) => node.innerText.trim())", selector)

    def text(self, selector):
        return "\n".join(self.texts(selector))

    def until_text(self, selector, *parts, seconds=60):
        """Waits until the texts of a place have all parts, and returns them."""
        def look():
            text = self.text(selector)
            return text if all(part in text for part in parts) else None
        try:
            return within(seconds, f"{selector} has {parts}", look)
        except Failed as failure:
            raise Failed(f"{failure}\n{self.text('body')[:4000]}") from None

    def until_gone(self, selector, part):
        within(60, f"{selector} no longer has {part}", lambda: part not in self.text(selector))

    def find(self, selector):
        return within(60, f"there is {selector}", lambda: self.driver.find_elements(By.CSS_SELECTOR, selector))[0]

    def button(self, within_selector, name):
        """The button with this accessible name."""
        def look():
            for button in self.driver.find_elements(By.CSS_SELECTOR, f"{within_selector} button"):
                try:
                    if button.accessible_name == name and button.is_displayed():
                        return button
                except (StaleElementReferenceException, NoSuchElementException):
                    continue
            return None
        return within(60, f"there is a button {name!r} in {within_selector}", look)

    def click(self, within_selector, name):
        self.button(within_selector, name).click()

    def follow_link(self, text):
        def follow():
            try:
                for link in self.driver.find_elements(By.LINK_TEXT, text):
                    link.click()
                    return True
            except StaleElementReferenceException:
                # The script has just put its rows in the place of those of the server.
                return False
        within(60, f"there is a link {text!r}", follow)

    def type(self, selector, *keys):
        self.find(selector).send_keys(*keys)

    def press(self, *keys):
        webdriver.ActionChains(self.driver).send_keys(*keys).perform()

    def press_with(self, modifier, key):
        webdriver.ActionChains(self.driver).key_down(modifier).send_keys(key).key_up(modifier).perform()

    def focused(self):
        """The accessible name of what has the focus."""
        return self.driver.switch_to.active_element.accessible_name

    def tab_to(self, name):
        """Presses Tab until what has the focus has this name, and checks that one sees where it is."""
        seen = []
        for _ in range(200):
            self.press(Keys.TAB)
            seen.append(self.focused())
            if seen[-1] == name:
                outline = self.script("return getComputedStyle(document.activeElement).outlineStyle")
                holds(f"the focus is seen on {name}", outline != "none")
                return
        raise Failed(f"Tab does not lead to {name!r}: {seen}")

    def axe(self, what):
        """No finding of axe-core."""
        self.script(AXE)
        found = self.driver.execute_async_script(
            "const done = arguments[1];"
            "axe.run(document, { runOnly: arguments[0] }).then((found) => done(JSON.stringify(found.violations)), "
            "(error) => done(JSON.stringify([{ id: String(error), nodes: [] }])))", RULES)
        found = json.loads(found)
        lines = [f"{rule['id']}: {node['html'][:200]} {node.get('failureSummary', '')}"
                 for rule in found for node in rule["nodes"] or [{"html": ""}]]
        holds(f"axe finds nothing in {what}:\n" + "\n".join(lines), not found)

    def fits(self, what):
        """Nothing is wider than the window."""
        wide = self.script(
            "const most = document.documentElement.clientWidth;"
            "return document.documentElement.scrollWidth <= most ? [] : [...document.querySelectorAll('body *')]"
            ".filter((node) => node.getBoundingClientRect().right > most + 1).map((node) => node.outerHTML.slice(0, 120))")
        holds(f"{what} is not wider than the window: {wide[:5]}", not wide)

    def picture(self, path):
        self.driver.save_screenshot(str(path))
