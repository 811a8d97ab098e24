# Looks at the proxy's page in headless Chromium, as a person with a mouse or a keyboard would, and
# as a page of another site.     python3 page.py ADMIN_ADDRESS TOKEN_FILE PICTURES ECHO
# The proxy has the agents cam-1 and cam-2; one stream of cam-1 is stuck, and ECHO is a target.
# Prints "ok" and figures, or what is wrong.
import http.server, json, os, socket, sys, threading, time

sys.dont_write_bytecode = True  # nothing is written beside the sources

import chromium
from chromium import until
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

admin, token_file, pictures, echo = sys.argv[1:5]
token = open(token_file).read().strip()
browser = None


def run(script, *args):
    return browser.execute_script(script, *args)


def rows():
    """{name: (session, text)} of the rows that the page shows."""
    return {name: (session, text) for session, name, text in run(
        "return [...document.querySelectorAll('tbody.session')].map((b) =>"
        " [b.id, b.querySelector('td.name span').firstChild.textContent, b.innerText])")}


def element(css):
    return browser.find_element(By.CSS_SELECTOR, css)


def picture(name):
    browser.save_screenshot(os.path.join(pictures, name + ".png"))


def look(scheme, width, height, mobile):
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
        "width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {
        "features": [{"name": "prefers-color-scheme", "value": scheme}]})


def brightness(css, property):
    r, g, b = [int(x) for x in run(
        "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]",
        css, property).split("(")[1].rstrip(")").split(",")[:3]]
    return (r * 299 + g * 587 + b * 114) / 1000


def fits():
    wide, has = run("return [document.documentElement.scrollWidth, innerWidth]")
    assert wide <= has, f"the page is {wide} wide on a screen of {has}"


def shows_what_there_is():
    browser.get(f"http://{admin}/")
    until("both rows", lambda: {"cam-1", "cam-2"} <= set(rows()))
    session, text = rows()["cam-1"]
    for word in ("token ", "127.0.0.1:", "raw", "up", " ms", "/s"):
        assert word in text, f"no {word} in {text}"
    until("a stuck stream", lambda: "for this end to read" in rows()["cam-1"][1])
    assert "waits" not in rows()["cam-2"][1]
    until("throughput", lambda: " MB/s" in rows()["cam-2"][1])
    until("a line", lambda: run(
        "const p = document.querySelector('tbody polyline').getAttribute('points');"
        "return p.split(' ').length > 5"))
    assert "backends" in element("#summary").text


def looks_right():
    for scheme, dark in (("light", False), ("dark", True)):
        for name, size in (("desk", (1280, 700, False)), ("phone", (390, 844, True))):
            look(scheme, *size)
            fits()
            assert (brightness("body", "backgroundColor") < 128) == dark
            contrast = abs(brightness("body", "backgroundColor") - brightness("body", "color"))
            assert contrast > 160, f"text is hard to read: {contrast}"
            picture(f"page-{name}-{scheme}")
    look("light", 1280, 700, False)


def focused():
    return run("return document.activeElement.getAttribute('aria-label') ||"
               " document.activeElement.id")


def works_by_keyboard():
    body = browser.switch_to
    seen = []
    for _ in range(16):
        body.active_element.send_keys(Keys.TAB)
        seen.append(focused())
        if seen[-1].startswith("Kick cam-2"):
            break
    else:
        raise AssertionError(f"TAB leads to {seen}")
    time.sleep(1.2)  # a refresh must not take the focus away
    assert focused() == seen[-1], "the focus went to " + focused()
    body.active_element.send_keys(Keys.ENTER)
    until("the question", lambda: element("#dialog").is_displayed())
    assert run("return document.querySelector('#dialog').contains(document.activeElement)")
    picture("page-question")
    browser.switch_to.active_element.send_keys(Keys.ESCAPE)
    until("the end of the question", lambda: not element("#dialog").is_displayed())
    assert focused() == seen[-1], "the focus does not come back"


def act(label, name, secret):
    element(f"button[aria-label^='{label} {name}']").click()
    until("the question", lambda: element("#dialog").is_displayed())
    assert name in element("#question").text
    element("#token").clear()
    element("#token").send_keys(secret)
    element("#go").click()


def acts_with_a_token_only():
    before = rows()["cam-2"][0]
    act("Kick", "cam-2", "wrong-wrong-wrong-wrong")
    until("the refusal", lambda: "admin-token-file" in element("#refusal").text)
    assert rows()["cam-2"][0] == before
    element("#cancel").click()
    act("Kick", "cam-2", token)
    until("another session", lambda: rows().get("cam-2", (before,))[0] != before)
    before = rows()["cam-2"][0]
    act("Drain", "cam-2", token)
    until("another session", lambda: rows().get("cam-2", (before,))[0] != before)
    run("document.querySelector('#glob').value = 'cam-1';"
        "document.querySelector('#glob').dispatchEvent(new Event('input'))")
    until("one row", lambda: list(rows()) == ["cam-1"])


def asks_the_other_end():
    ask = element("button[aria-label^='Ask the other end']")
    ask.click()
    answer = until("an answer", lambda: element("ul.blocked div").text)
    assert "the other end waits" in answer, answer
    assert "for this end to read (peer's credit)" in answer, answer
    time.sleep(1.2)  # a refresh must not take it away
    assert element("ul.blocked div").text == answer
    assert focused() == ask.get_attribute("aria-label")
    picture("page-other-end")


def ports():
    """{address: text} of the ports that the page shows."""
    return {address: text for address, text in run(
        "return [...document.querySelectorAll('tbody.port')].map((b) =>"
        " [b.querySelector('td.name').innerText, b.innerText])")}


def fill(css, text):
    element(css).clear()
    element(css).send_keys(text)


def expose(name, listen, target, secret):
    element(f"button[aria-label^='Expose {name}']").click()
    until("the question", lambda: element("#listen").is_displayed())
    for css, text in (("#listen", listen), ("#target", target), ("#token", secret)):
        fill(css, text)
    element("#go").click()


def opens_and_closes_ports():
    configured = set(ports())
    assert len(configured) == 6, configured
    expose("cam-1", "127.0.0.1:0", echo, "wrong-wrong-wrong-wrong")
    until("the refusal", lambda: "admin-token-file" in element("#refusal").text)
    for listen, target, why in ((min(configured), echo, "in use"), ("300.0.0.1:1", "", "300.0.0.1"),
                                ("127.0.0.1:0", "a:b:c", "a:b:c"), ("127.0.0.1:0", "<", "letters")):
        element("#cancel").click()
        expose("cam-1", listen, target, token)
        until("why " + listen + " cannot be", lambda: why in element("#refusal").text)
    element("#cancel").click()
    assert set(ports()) == configured
    expose("cam-1", "127.0.0.1:0", echo, token)
    new, = until("a new port", lambda: set(ports()) - configured)
    assert "this page" in ports()[new] and echo in ports()[new], ports()[new]
    fits()
    picture("page-ports")
    with socket.create_connection(new.split(":"), 10) as client:
        client.sendall(b"hello")
        assert client.recv(5) == b"hello"
        element(f"button[aria-label='Close {new}']").click()
        until("the question", lambda: new in element("#question").text)
        fill("#token", token)
        element("#go").click()
        until("the end of the port", lambda: set(ports()) == configured)
        client.sendall(b"again")  # it goes on
        assert client.recv(5) == b"again"
    assert not [p for p in ports().values() if "Close" in p]


# What a page of another site can try: a form, a request without CORS, one with it, and reading.
EVIL = """<!DOCTYPE html><form method=post target=f action="http://%(at)s/kick?session=%(id)s">
</form><form method=post target=h action="http://%(at)s/expose?port=127.0.0.1:0=cam-1"></form>
<iframe name=f></iframe><iframe name=h></iframe><iframe id=g src="http://%(at)s/"></iframe><script>
for (const form of document.forms) form.submit();
const url = 'http://%(at)s/kick?session=%(id)s', headers = {Authorization: 'Bearer %(token)s'};
Promise.allSettled([
  fetch(url, {method: 'POST', mode: 'no-cors', headers}),
  fetch(url, {method: 'POST', headers}),
  fetch('http://%(at)s/status').then((r) => r.text()),
]).then((all) => document.title = JSON.stringify(all.map((r) => r.status + (r.value || ''))));
</script>"""


def other_sites_get_nothing():
    session, before = rows()["cam-1"][0][1:], ports()
    text = EVIL % {"at": admin, "id": session, "token": token}

    class Evil(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Evil)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    browser.get(f"http://127.0.0.1:{server.server_port}/")
    ends = json.loads(until("an outcome", lambda: browser.title.startswith("[") and browser.title))
    assert ends[1:] == ["rejected", "rejected"], ends
    browser.get(f"http://{admin}/")
    until("rows", lambda: "cam-1" in rows())
    assert rows()["cam-1"][0][1:] == session, "another site has ended the session"
    assert ports() == before, "another site has opened a port"


def nothing_is_foreign():
    loaded = run("return performance.getEntriesByType('resource').map((e) => e.name)")
    foreign = [name for name in loaded if not name.startswith(f"http://{admin}/")]
    assert not foreign, foreign
    bad = [e for e in browser.get_log("browser") if e["level"] == "SEVERE"
           and not any(own in e["message"] for own in ("/kick", "/expose"))
           and "127.0.0.1" not in e["message"].split(" ")[0]]
    assert not bad, bad


try:
    browser = chromium.start("--window-size=1280,700")
    shows_what_there_is()
    nothing_is_foreign()
    looks_right()
    works_by_keyboard()
    acts_with_a_token_only()
    browser.get(f"http://{admin}/")
    until("rows", lambda: {"cam-1", "cam-2"} <= set(rows()))
    asks_the_other_end()
    opens_and_closes_ports()
    other_sites_get_nothing()
    print("ok", browser.capabilities["browserVersion"])
except Exception as e:
    print(f"{e.__class__.__name__}: {e}".splitlines()[0])
    if browser:
        picture("page-wrong")
        print("it shows:", " | ".join(run("return document.body.innerText").split("\n"))[:1500])
    sys.exit(1)
finally:
    if browser:
        browser.quit()
