// /docs: the API reference, rendered in the browser from the server's descriptions.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { documentOf } from '../support/schemas.mjs';
import { Tab, serverAndBrowser } from './support.mjs';

let here;
before(async () => (here = await serverAndBrowser()));
after(() => here?.stop());

/** The reference in a tab that may connect to this server only. */
async function docs(t, options) {
  const { context } = await here.profile(t, options);
  const elsewhere = [];
  context.on('request', (request) => {
    if (!request.url().startsWith(here.server.url)) elsewhere.push(request.url());
  });
  const tab = new Tab(await context.newPage());
  const response = await tab.page.goto(`${here.server.url}/docs`);
  await tab.page.locator('#reference:not([aria-busy])').waitFor();
  t.after(() => assert.deepEqual([tab.complaints, elsewhere], [[], []], 'the browser complained, or asked elsewhere'));
  return { tab, policy: response.headers()['content-security-policy'] };
}

test('shows every endpoint, event and type, and nothing else', async (t) => {
  const { tab, policy } = await docs(t);
  assert.ok(policy.includes("default-src 'self'") && !policy.includes('unsafe'), policy);
  assert.equal(await tab.text('#problem'), '');
  const openapi = await documentOf(here.server, '/openapi.json');
  const asyncapi = await documentOf(here.server, '/asyncapi.json');
  const expected = [
    ...Object.entries(openapi.paths).flatMap(([path, item]) => Object.keys(item).map((method) => `${method.toUpperCase()} ${path}`)),
    ...Object.keys(asyncapi.operations).map((key) => asyncapi.components.messages[key].name),
    ...new Set([...Object.keys(openapi.components.schemas), ...Object.keys(asyncapi.components.schemas)]),
  ];
  const headings = await tab.page.locator('article h3').allTextContents();
  assert.deepEqual(headings.sort(), expected.sort());
  await tab.picture('docs');
});

test('says what a parameter takes, and where a type is described', async (t) => {
  const { tab } = await docs(t);
  const calls = tab.page.locator('article', { has: tab.page.locator('h3', { hasText: /^GET \/v1\/calls$/ }) });
  const limit = calls.locator('tr', { has: tab.page.locator('th', { hasText: 'limit' }) });
  assert.match(await limit.innerText(), /optional\s+integer\s+1 to 200, default 50\./);
  await calls.getByRole('link', { name: 'CallPage' }).click();
  assert.match(tab.page.url(), /#type-CallPage$/);
  const hrefs = await tab.page.locator('main a[href^="#"], nav a').evaluateAll((links) => links.map((link) => link.getAttribute('href').slice(1)));
  const missing = await tab.page.evaluate((ids) => ids.filter((id) => !document.getElementById(id)), [...new Set(hrefs)]);
  assert.deepEqual(missing, [], 'every link leads somewhere');
});

test('fits a phone', async (t) => {
  const { tab } = await docs(t, { viewport: { width: 360, height: 740 } });
  const overflow = await tab.page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
  assert.equal(overflow, 0);
  await tab.picture('docs-phone');
});

test('says so if it cannot be shown', async (t) => {
  const { context } = await here.profile(t);
  const page = await context.newPage();
  await page.route('**/openapi.json', (route) => route.fulfill({ status: 503 }));
  await page.goto(`${here.server.url}/docs`);
  await page.locator('#problem', { hasText: '/openapi.json cannot be read: 503' }).waitFor();
});
