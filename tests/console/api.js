// What the test does to the registry beside the page.

export class Api {
  constructor(node, token = '') {
    this.node = node.url;
    this.token = token;
  }

  async call(method, path, body) {
    const headers = { 'content-type': 'application/json' };
    if (this.token) headers.authorization = `Bearer ${this.token}`;
    const answer = await fetch(new URL(path, this.node), { method, headers, body: body && JSON.stringify(body) });
    const text = await answer.text();
    return { status: answer.status, body: text ? JSON.parse(text) : {} };
  }

  at(service, id) {
    return `/api/v1/namespaces/default/services/${encodeURIComponent(service)}/instances/${encodeURIComponent(id)}`;
  }

  put(service, id, spec = {}) {
    const endpoints = { http: 'http://127.0.0.1:1' };
    return this.call('PUT', this.at(service, id), { ttl_ms: 3_600_000, endpoints, ...spec });
  }

  async must(answer) {
    const { status, body } = await answer;
    if (status >= 300) throw new Error(`HTTP ${status}: ${JSON.stringify(body)}`);
    return body;
  }

  /** Runs `make(number)` for all numbers below `count`, some at a time. */
  static async many(count, make, together = 16) {
    let next = 0;
    const worker = async () => {
      while (next < count) await make(next++);
    };
    await Promise.all(Array.from({ length: together }, worker));
  }
}

const SCRIPT = 'self.pwned=1;alert(1)';
// Nacos#1717, Nacos#1918, fabio#588, nomad#7468, consul PR#22596: what was registered ran in the page that showed it.
const MARKUP = `"'><img src=x onerror=${SCRIPT}><script>${SCRIPT}</script><svg onload=${SCRIPT}>`;

/** What must stay text, by the field that it stands in. Where the registry itself refuses one, that is as good. */
export const PAYLOADS = [
  { metadata: { note: MARKUP } },
  { metadata: { [MARKUP]: 'a key' } },
  { metadata: { note: `{{constructor.constructor('${SCRIPT}')()}} \${alert(1)} javascript:alert(1)\u0000\u202e` } },
  { metadata: { note: `]]></style></textarea></title><iframe srcdoc="<script>parent.pwned=1</script>">` } },
  { tags: [`<img/src=x/onerror=${SCRIPT.replace(' ', '')}>`] },
  { endpoints: { [MARKUP]: 'http://127.0.0.1:1' } },
  { endpoints: { constructor: 'http://127.0.0.1:1', toString: 'http://127.0.0.1:1' } },
  { endpoints: { http: `javascript:${SCRIPT}` } },
  { endpoints: { http: `JaVaScRiPt:${SCRIPT}` } },
  { endpoints: { http: `data:text/html,<script>${SCRIPT}</script>` } },
  { endpoints: { http: `vbscript:msgbox` } },
  { endpoints: { http: `http://127.0.0.1/"onmouseover="${SCRIPT}` } },
  { endpoints: { http: 'http://127.0.0.1:1' }, zone: '__proto__', version: 'constructor' },
  { metadata: JSON.parse('{"__proto__": "x", "constructor": "y", "toString": "z"}') },
  { requires: ['__proto__', 'constructor', 'hasOwnProperty'] },
  { zone: `<b>${SCRIPT}</b>` },
  { version: `<i>${SCRIPT}</i>` },
  { checks: [{ http: { path: `/<img/src=x/onerror=${SCRIPT}>` }, endpoint: 'http' }] },
];

export { MARKUP };
