// What can be done with the console, by whom.

import { clean, fault, go, is, login, opened, rows, shows, text } from './page.js';

/** Does what a dialog asks for. */
async function act(page, name, given, done) {
  await page.click(`main button:text-is("${name}")`);
  for (const [field, value] of Object.entries(given)) await page.fill(`#ask-${field}`, value);
  await page.click('dialog button[type=submit]');
  await page.waitForSelector('dialog', { state: 'detached', timeout: 10_000 });
  if (done) await shows(page, done);
}

export async function actions({ page, url, api }) {
  await go(page, url, 'instance/shop/shop-3');
  await page.click('main button:text-is("Drain")');
  await page.click('dialog button[type=submit]');
  await page.waitForSelector('dialog .problem:not([hidden])');
  await page.keyboard.press('Escape');
  await act(page, 'Drain', { reason: 'a test <b>' }, 'draining. Reason: a test <b>');
  await act(page, 'Weight', { weight: '7', reason: 'less' }, 'draining, weight 7. Reason: less');
  await act(page, 'Out of service', { reason: 'broken' }, 'out of service, weight 7. Reason: broken');
  const now = await api.must(api.call('GET', api.at('shop', 'shop-3')));
  const { override } = now.instance ?? now;
  is(override?.weight === 7 && override.reason === 'broken', `the registry has ${JSON.stringify(override)}`);
  await meanwhile(page, url, api);
  await go(page, url, 'overrides');
  await shows(page, 'shop/shop-3');
  await go(page, url, 'instance/shop/shop-3');
  await act(page, 'Clear override', {});
  await page.waitForFunction(() => !document.querySelector('.override'));
  const seen = await text(page, 'main .history');
  is(seen.includes('status UP → DRAINING') && seen.includes('override cleared'), `the changes of the instance: ${seen}`);
  await menu(page, url);
  await go(page, url, 'instance/shop/shop-3');
  await deregister(page, api);
  await members(page, url);
  await clean(page, 'actions');
}

/** Another operator decides while a dialog is open: that stands, and the dialog says so. */
async function meanwhile(page, url, api) {
  const place = `${api.at('shop', 'shop-3')}/override`;
  await go(page, url, 'instance/shop/shop-3');
  await page.click('main button:text-is("Weight")');
  await api.must(api.call('PUT', place, { status: 'DRAINING', weight: 9, reason: 'another' }));
  await page.fill('#ask-weight', '5');
  await page.fill('#ask-reason', 'mine');
  await page.click('dialog button[type=submit]');
  await page.waitForSelector('dialog .problem:not([hidden])');
  const said = await page.$eval('dialog .problem', (it) => it.textContent);
  is(said.includes('changed meanwhile') && said.includes('weight 9'), `the dialog says: ${said}`);
  await page.keyboard.press('Escape');
  const now = await api.must(api.call('GET', api.at('shop', 'shop-3')));
  is((now.instance ?? now).override?.weight === 9, 'the decision of another is lost');
  await shows(page, 'Reason: another');
}

/** The same from the list. */
async function menu(page, url) {
  await go(page, url, 'service/shop');
  await page.click('[aria-label="Do something to shop-3"]');
  const found = await page.$$eval('dialog button', (all) => all.map((it) => it.textContent));
  is(String(found) === 'Drain,Out of service,Weight,Deregister,Cancel', `what can be done to shop-3: ${found}`);
  await page.click('dialog button:text-is("Drain")');
  await page.fill('#ask-reason', 'from the list');
  await page.click('dialog button[type=submit]');
  await page.waitForSelector('dialog', { state: 'detached', timeout: 10_000 });
  await page.waitForFunction(() => [...document.querySelectorAll('.spacer .row:not([hidden])')].some((it) => it.innerText.includes('shop-3') && it.innerText.includes('draining')));
  is(page.url().endsWith('/service/shop'), `the button opens the row: ${page.url()}`);
  await page.click('[aria-label="Do something to shop-3"]');
  await page.click('dialog button:text-is("Clear override")');
  await page.click('dialog button[type=submit]');
  await page.waitForSelector('dialog', { state: 'detached', timeout: 10_000 });
}

async function deregister(page, api) {
  await page.click('main button:text-is("Deregister")');
  await page.fill('#ask-id', 'shop-4');
  await page.click('dialog button[type=submit]');
  await page.waitForSelector('dialog .problem:not([hidden])');
  await page.fill('#ask-id', 'shop-3');
  await page.click('dialog button[type=submit]');
  await shows(page, 'not registered');
  is((await api.call('GET', api.at('shop', 'shop-3'))).status === 404, 'it is still registered');
  await api.must(api.put('shop', 'shop-3', { requires: ['payments'] }));
}

async function members(page, url) {
  await go(page, url, 'members');
  await page.waitForSelector('main table');
  await act(page, 'Snapshot', {});
  await shows(page, 'snapshot covers', '#toast');
  await staysOn(page);
  const leads = () => page.$$eval('main tbody tr', (all) => all.findIndex((it) => it.innerText.includes('leader')));
  const before = await leads();
  await page.click('main button:text-is("Transfer the lead here") >> nth=0');
  await page.click('dialog button[type=submit]');
  await page.waitForSelector('dialog', { state: 'detached', timeout: 15_000 });
  await page.waitForFunction((old) => {
    const at = [...document.querySelectorAll('main tbody tr')].findIndex((it) => it.innerText.includes('leader'));
    return at >= 0 && at !== old;
  }, before, { timeout: 15_000 });
}

/** The table is built anew every few seconds: the keyboard stays on the row that it was on. */
async function staysOn(page) {
  const last = page.locator('main button:text-is("Transfer the lead here") >> nth=-1');
  const label = await last.getAttribute('aria-label');
  await last.focus();
  await page.evaluate(() => (document.activeElement.before = true));
  await page.waitForFunction(() => !document.activeElement.before, null, { timeout: 15_000 }).catch(() => undefined);
  const now = await page.evaluate(() => document.activeElement.getAttribute('aria-label'));
  is(label === now, `the keyboard was on "${label}", and is on "${now}"`);
}

export async function pausing({ page, url, api }) {
  await go(page, url, 'log');
  await api.must(api.put('pause', 'pause-1'));
  await shows(page, 'pause/pause-1', '.list');
  await page.keyboard.press('p');
  await api.must(api.put('pause', 'pause-2'));
  await page.waitForFunction(() => document.querySelector('.sum').textContent.includes('1 more'));
  is((await rows(page, 'pause-2')).length === 0, 'the log goes on while it is paused');
  await page.keyboard.press('p');
  await shows(page, 'pause/pause-2', '.list');
}

const ACTIONS = ['Drain', 'Out of service', 'Weight', 'Clear override', 'Deregister', 'Snapshot', 'Transfer the lead here'];
/** The buttons that each token has in a view. */
const SEEN = {
  reader: { 'instance/shop/shop-1': [], 'instance/ledger/ledger-1': [], members: [] },
  operator: { 'instance/shop/shop-1': ['Drain', 'Out of service', 'Weight', 'Deregister'], members: [] },
};

/** What a token has no right to has no button, and is refused by the node. */
export async function rights({ browser, url, nodes, tokens }) {
  if (!tokens.admin) return;
  await refused(browser, url);
  for (const [name, seen] of Object.entries(SEEN)) {
    const page = await opened(browser);
    await login(page, url, tokens[name]);
    for (const [view, wanted] of Object.entries(seen)) {
      await go(page, url, view);
      await (view === 'members' ? page.waitForSelector('main table') : shows(page, view.split('/').pop()));
      const buttons = await page.$$eval('main button', (every) => every.map((it) => it.textContent));
      is(String(buttons.filter((it) => ACTIONS.includes(it))) === String(wanted), `${view}: a token of ${name} has ${buttons}`);
    }
    page.allowed = ['401', '403'];
    const status = await page.evaluate(async () => {
      const headers = { 'content-type': 'application/json', authorization: `Bearer ${sessionStorage.getItem('quorate.token')}` };
      return (await fetch('/api/v1/namespaces/default/services/ledger/instances/ledger-1', { method: 'DELETE', headers })).status;
    });
    is(status === 403, `a deregistration by a token of ${name}: HTTP ${status}`);
    await go(page, url, 'me');
    await page.click('text=Log out');
    await page.waitForSelector('#token');
    is((await page.evaluate(() => sessionStorage.length)) === 0, 'the token is kept after the log out');
    await page.context().close();
  }
  await fewer(browser, url, nodes, tokens);
}

/** A token loses a right while its page is open: so do the rows their buttons, once the node has refused something. */
async function fewer(browser, url, nodes, tokens) {
  const page = await opened(browser);
  await login(page, url, tokens.operator);
  await go(page, url, 'service/shop');
  await page.waitForSelector('[aria-label="Do something to shop-1"]');
  page.allowed = ['403'];
  const before = nodes.rewrite((access) => access.replace('role = "operator"', 'role = "read"'));
  // What the page asks as an operator, it asks every few seconds.
  await page.waitForSelector('[aria-label="Do something to shop-1"]', { state: 'detached', timeout: 40_000 })
    .catch(() => fault('a token that is no operator any more has the buttons of one'));
  await shows(page, 'shop-1');
  nodes.rewrite(() => before);
  await page.context().close();
}

/** A token that no node knows. */
async function refused(browser, url) {
  const page = await opened(browser);
  page.allowed = ['401'];
  await page.goto(`${url}/console/`);
  await page.waitForSelector('#token');
  await page.fill('#token', 'qrt_wrong');
  await page.press('#token', 'Enter');
  await page.waitForSelector('.login .problem');
  is((await page.evaluate(() => sessionStorage.length)) === 0, 'a token that was refused is kept');
  await page.context().close();
}
