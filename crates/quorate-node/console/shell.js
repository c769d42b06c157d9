// The command line that registers an instance as it is.

/** A word as a shell takes it: nothing in it is more than text, and nothing in it does more than stand there when it is pasted. */
export function word(text) {
  if (/^[\w@%+=:,./-]+$/.test(text)) return text;
  if (!/[^\x20-\x7e\u00a1-\u1fff\u2c00-\ud7ff]/.test(text)) return `'${text.replaceAll("'", "'\\''")}'`;
  const bytes = [...new TextEncoder().encode(text)];
  const plain = (byte) => byte > 0x1f && byte < 0x7f && byte !== 0x27 && byte !== 0x5c;
  return `$'${bytes.map((byte) => (plain(byte) ? String.fromCharCode(byte) : `\\x${byte.toString(16).padStart(2, '0')}`)).join('')}'`;
}

function check(it) {
  const kind = it.http ? `http=${it.http.path || '/'}` : it.grpc ? `grpc=${it.grpc.service ?? ''}` : 'tcp';
  const endpoint = it.endpoint ? `,endpoint=${it.endpoint}` : '';
  return `${kind}${endpoint},every=${it.interval_ms}ms,timeout=${it.timeout_ms}ms,failures=${it.failures_before_critical},successes=${it.successes_before_passing}`;
}

export function command(it) {
  const words = ['quorate', 'register', it.service, it.id];
  if (it.namespace && it.namespace !== 'default') words.push('--namespace', it.namespace);
  for (const [name, uri] of Object.entries(it.endpoints)) words.push('--endpoint', `${name}=${uri}`);
  if (it.zone) words.push('--zone', it.zone);
  if (it.version) words.push('--version-tag', it.version);
  if (it.weight !== undefined) words.push('--weight', String(it.weight));
  for (const [key, value] of Object.entries(it.metadata)) words.push('--meta', `${key}=${value}`);
  for (const tag of it.tags) words.push('--tag', tag);
  for (const service of it.requires) words.push('--requires', service);
  for (const one of it.checks) words.push('--check', check(one));
  return words.map(word).join(' ');
}
