// What all steps of the walk do with a page of the console.

export const WIDE = { width: 1280, height: 800 };
export const NARROW = { width: 390, height: 844 };

/** Each view, and what it shows of what was registered. */
export const VIEWS = {
  overview: 'voters answer', services: 'shop', 'service/shop': 'shop-1', 'instance/shop/shop-1': 'payments', graph: 'not registered',
  'graph/shop': 'around shop', overrides: 'payload-0', members: 'leader', log: 'since this page watches', me: 'You are',
};

export const faults = [];
export const fault = (what) => {
  faults.push(what);
  console.log(`  FAULT ${what}`);
};
/** What could not be judged is said; before a release, it is a fault. */
export const skipped = (what, why) => (process.env.QUORATE_NO_SKIPS ? fault(`${what}: ${why}`) : console.log(`SKIPPED: ${what}: ${why}`));
export const is = (truth, what) => (truth ? undefined : fault(what));
export const text = (page, selector) => page.$eval(selector, (it) => it.textContent);

/** A page whose dialogs, errors and reports are faults. */
export async function opened(browser, options = {}) {
  const context = await browser.newContext({ viewport: WIDE, colorScheme: 'light', ...options });
  const page = await context.newPage();
  page.allowed = [];
  page.on('dialog', (dialog) => {
    fault(`a dialog: ${dialog.message()}`);
    dialog.dismiss();
  });
  page.on('pageerror', (error) => fault(`an error in the page: ${error.stack}`));
  page.on('console', (message) => {
    if (['error', 'warning'].includes(message.type()) && !page.allowed.some((it) => message.text().includes(it))) fault(`the console: ${message.text()}`);
  });
  await page.addInitScript(() => {
    self.reports = [];
    document.addEventListener('securitypolicyviolation', (event) => self.reports.push(`${event.violatedDirective} ${event.blockedURI} ${event.sample}`));
  });
  return page;
}

export const place = (view) => `#/default/${view}`;

/** Leads a page to a place, and waits until what is there has been drawn. */
export async function turn(page, hash) {
  await page.evaluate((to) => new Promise((resolve) => {
    const drawn = () => requestAnimationFrame(() => requestAnimationFrame(resolve));
    if (location.hash === to) return drawn();
    addEventListener('hashchange', drawn, { once: true });
    location.hash = to;
  }), hash);
}

/** Opens a view, and waits until the page follows the registry. */
export async function go(page, url, view) {
  if (page.url().startsWith(`${url}/console/`)) await turn(page, place(view));
  else await page.goto(`${url}/console/${place(view)}`);
  await page.waitForSelector('#foot.on', { timeout: 30_000 });
}

export const shows = (page, word, selector = 'main', timeout = 10_000) =>
  page.waitForFunction(([at, it]) => document.querySelector(at)?.innerText.includes(it), [selector, word], { timeout }).catch(() => fault(`${page.url()} does not show "${word}"`));

/** No report of the policy, no foreign script, no cookie, nothing kept but the token and the theme, no odd link. */
export async function clean(page, where) {
  const { reports, pwned, cookie, kept, local, links } = await page.evaluate(() => ({
    reports: self.reports, pwned: self.pwned, cookie: document.cookie, kept: Object.keys(sessionStorage), local: Object.keys(localStorage),
    links: [...document.querySelectorAll('a')].map((it) => it.getAttribute('href')),
  }));
  is(reports.length === 0, `${where}: reports of the policy: ${reports}`);
  is(pwned === undefined, `${where}: foreign script ran`);
  is(cookie === '', `${where}: a cookie: ${cookie}`);
  is(kept.every((it) => it === 'quorate.token'), `${where}: sessionStorage has ${kept}`);
  is(local.every((it) => it === 'quorate.theme'), `${where}: localStorage has ${local}`);
  const odd = links.filter((it) => !/^(#|https?:\/\/)/.test(it));
  is(odd.length === 0, `${where}: links to ${odd}`);
}

/** Opens the console, and gives it a token where there is one. */
export async function login(page, url, token, view = 'overview') {
  await page.goto(`${url}/console/${place(view)}`);
  if (token) {
    const before = page.allowed;
    page.allowed = [...before, '401'];
    await page.waitForSelector('#token');
    await shows(page, 'Waits for a token', '#foot');
    await page.fill('#token', token);
    await page.press('#token', 'Enter');
    await page.waitForSelector('#foot.on');
    page.allowed = before;
    is(!page.url().includes(token), 'the token is in the address');
  }
  await page.waitForSelector('#foot.on', { timeout: 30_000 });
}

/** The rows of a list that are in sight, as texts. */
export const rows = (page, word = '') =>
  page.$$eval('.spacer .row:not([hidden])', (all, it) => all.map((row) => row.innerText).filter((told) => told.includes(it)), word);
