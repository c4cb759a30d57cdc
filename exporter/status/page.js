"use strict";
(() => {
  const period = Number(document.documentElement.dataset.refreshSeconds) * 1000;
  const button = document.getElementById("pause");
  const notice = document.getElementById("notice");
  let paused = false;
  let busy = false;
  let lastSeen = new Date();

  // Makes `now` like `next` and touches only what differs: focus, scrolling, selection and open
  // details stay as they are.
  const morph = (now, next) => {
    if (now.isEqualNode(next)) return;
    if (now.nodeName !== next.nodeName || now.id !== next.id) {
      now.replaceWith(document.importNode(next, true));
      return;
    }
    if (now.nodeType !== Node.ELEMENT_NODE) {
      now.nodeValue = next.nodeValue;
      return;
    }
    for (const { name } of [...now.attributes])
      if (!next.hasAttribute(name) && name !== "open") now.removeAttribute(name);
    for (const { name, value } of next.attributes)
      if (now.getAttribute(name) !== value) now.setAttribute(name, value);
    [...next.childNodes].forEach((child, position) => {
      let here = now.childNodes[position];
      const known = child.id && [...now.children].find((element) => element.id === child.id);
      if (known && known !== here) {
        now.insertBefore(known, here);
        here = known;
      }
      if (here) morph(here, child);
      else now.append(document.importNode(child, true));
    });
    while (now.childNodes.length > next.childNodes.length) now.lastChild.remove();
  };

  const refresh = async () => {
    if (busy || paused || document.hidden) return;
    busy = true;
    try {
      const answer = await fetch(location.href, {
        cache: "no-store",
        signal: AbortSignal.timeout(10000),
      });
      if (!answer.ok) throw new Error(`status ${answer.status}`);
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      const next = page.querySelector("main");
      if (!next) throw new Error("not a status page");
      const focused = document.activeElement && document.activeElement.id;
      morph(document.querySelector("main"), next);
      document.title = page.title;
      if (focused && document.activeElement === document.body)
        document.getElementById(focused)?.focus({ preventScroll: true });
      lastSeen = new Date();
      document.querySelector("main").classList.remove("old");
      notice.hidden = true;
    } catch (error) {
      if (notice.hidden) {
        notice.textContent = `No answer from the exporter. This is the state of ${lastSeen.toLocaleTimeString()}.`;
        notice.hidden = false;
        document.querySelector("main").classList.add("old");
      }
    } finally {
      busy = false;
    }
  };

  button.hidden = false;
  button.addEventListener("click", () => {
    paused = !paused;
    button.textContent = paused ? "Resume updates" : "Pause updates";
    refresh();
  });
  document.addEventListener("visibilitychange", refresh);
  setInterval(refresh, period);
})();
