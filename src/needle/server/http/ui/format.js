// Numbers for people: aligned, with units, never longer than they need to be.

const whole = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });
const NOTHING = "\u2013";

const known = (value, text) => (value === null || value === undefined || Number.isNaN(value) ? NOTHING : text(value));

export const count = (value) => known(value, (n) => whole.format(n));

export const short = (value) =>
  known(value, (n) => {
    const units = ["", "k", "M", "G"];
    let at = 0;
    let left = n;
    while (Math.abs(left) >= 1000 && at < units.length - 1) {
      left /= 1000;
      at += 1;
    }
    const digits = left >= 100 || (at === 0 && Number.isInteger(left)) ? 0 : left >= 10 ? 1 : 2;
    return `${left.toFixed(digits)}${units[at]}`;
  });

export const bytes = (value) =>
  known(value, (n) => {
    const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let at = 0;
    let left = n;
    while (left >= 1024 && at < units.length - 1) {
      left /= 1024;
      at += 1;
    }
    return `${left.toFixed(at === 0 || left >= 100 ? 0 : 1)}\u00a0${units[at]}`;
  });

export const seconds = (value) =>
  known(value, (n) => {
    if (n < 0.001 && n > 0) return `${(n * 1e6).toFixed(0)}\u00a0\u00b5s`;
    if (n < 1) return `${(n * 1000).toFixed(n < 0.01 && n > 0 ? 1 : 0)}\u00a0ms`;
    if (n < 120) return `${n.toFixed(n < 10 ? 1 : 0)}\u00a0s`;
    if (n < 7200) return `${(n / 60).toFixed(0)}\u00a0min`;
    if (n < 172800) return `${(n / 3600).toFixed(0)}\u00a0h`;
    return `${(n / 86400).toFixed(0)}\u00a0days`;
  });

export const rate = (value) => known(value, (n) => `${short(n)}/s`);

export const percent = (value) => known(value, (n) => `${(n * 100).toFixed(1)}\u00a0%`);

// Scores and lengths of vectors, which may be of any size.
export const measure = (value) =>
  known(value, (n) => (Math.abs(n) < 1e9 ? Number(n).toFixed(4) : Number(n).toExponential(6)));

export const plural = (n, one, many = `${one}s`) => `${count(n)} ${n === 1 ? one : many}`;
