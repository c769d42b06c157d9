// Numbers and times as people read them.

const grouped = new Intl.NumberFormat('en');

export const count = (number) => grouped.format(Number(number ?? 0));

/** "1 instance", "2 instances". */
export const many = (number, word) => `${count(number)} ${word}${Number(number) === 1 ? '' : 's'}`;

export function duration(ms) {
  const whole = Math.max(0, Number(ms));
  if (whole < 1000) return `${Math.round(whole)} ms`;
  const seconds = Math.floor(whole / 1000);
  if (seconds < 60) return `${seconds} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min ${seconds % 60} s`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return `${hours} h ${minutes % 60} min`;
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

/** The same in its greatest unit. */
export const roughly = (ms) => duration(ms).replace(/^(\d+ \S+) .*$/, '$1');

/** How long ago a moment of this page was, to the second. */
export function ago(at) {
  const ms = Date.now() - at;
  return ms < 1000 ? 'now' : `${duration(ms)} ago`;
}

const clock = new Intl.DateTimeFormat('en-GB', { hour: '2-digit', minute: '2-digit', second: '2-digit' });
export const time = (at) => clock.format(at);

const day = new Intl.DateTimeFormat('en-GB', { dateStyle: 'medium', timeStyle: 'medium' });
export const date = (at) => day.format(at);

export function bytes(number) {
  const mib = Number(number) / 1048576;
  if (mib < 1024) return `${Math.floor(mib)} MiB`;
  return mib < 10240 ? `${(mib / 1024).toFixed(1)} GiB` : `${count(Math.floor(mib / 1024))} GiB`;
}

/** Incarnations are mostly the start of a process in microseconds: then the time says more. */
export function incarnation(text) {
  const ms = Number(text) / 1000;
  const likely = ms > Date.UTC(2015, 0) && ms < Date.now() + 3.2e11;
  return likely ? `${text} (${date(ms)})` : text;
}
