// Verifies a message's proof (heliograph-proof@v1) with WebCrypto: RFC 6962 inclusion, the chain of events, and signed notes (c2sp.org/signed-note, tlog-cosignature).
"use strict";

const utf8 = new TextEncoder();
const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const hex = (data) => [...data].map((at) => at.toString(16).padStart(2, "0")).join("");
const sha256 = async (...parts) => new Uint8Array(await crypto.subtle.digest("SHA-256", await new Blob(parts).arrayBuffer()));

class Unproven extends Error {}

function check(holds, what) {
  if (!holds) throw new Unproven(what);
}

// RFC 9162, 2.1.3.2. Sizes may exceed 32 bits: no bit operators.
async function rootOf(leaf, index, size, path) {
  check(index < size, "the entry lies beyond the checkpoint");
  let [at, last, root] = [index, size - 1, leaf];
  for (const hash of path) {
    check(last > 0, "the path is too long");
    if (at % 2 === 1 || at === last) {
      root = await sha256(Uint8Array.of(1), hash, root);
      while (at % 2 === 0 && at > 0) { at /= 2; last = Math.floor(last / 2); }
    } else {
      root = await sha256(Uint8Array.of(1), root, hash);
    }
    at = Math.floor(at / 2);
    last = Math.floor(last / 2);
  }
  check(last === 0, "the path is too short");
  return root;
}

function parseNote(note) {
  const end = note.lastIndexOf("\n\n");
  check(end > 0, "the checkpoint is no signed note");
  const text = note.slice(0, end + 1);
  const [origin, size, root] = text.split("\n");
  const signatures = note.slice(end + 2).split("\n").filter(Boolean).map((line) => {
    const [dash, name, data] = line.split(" ");
    check(dash === "—" && data, "a signature line is not well formed");
    return { name, id: hex(bytes(data).slice(0, 4)), blob: bytes(data).slice(4) };
  });
  check(/^(0|[1-9][0-9]*)$/.test(size) && Number.isSafeInteger(Number(size)), "the checkpoint's size is no number");
  return { text, origin, size: Number(size), root, signatures };
}

async function parseKey(vkey) {
  const [name, id, data] = vkey.split(/\+([0-9a-f]{8})\+/);
  const key = bytes(data);
  const own = hex((await sha256(utf8.encode(`${name}\n`), key)).slice(0, 4));
  check(own === id && key.length === 33, `the key of ${name} is not well formed`);
  return { name, id, type: key[0], raw: key.slice(1) };
}

// true, false, or null where this browser has no Ed25519.
async function signed(note, signature, key) {
  let message = utf8.encode(note.text);
  let blob = signature.blob;
  if (key.type === 4) { // a cosignature: eight bytes of time, then the signature over both
    const time = new DataView(blob.buffer, blob.byteOffset, 8).getBigUint64(0);
    message = utf8.encode(`cosignature/v1\ntime ${time}\n${note.text}`);
    blob = blob.slice(8);
  }
  try {
    const imported = await crypto.subtle.importKey("raw", key.raw, { name: "Ed25519" }, false, ["verify"]);
    return await crypto.subtle.verify("Ed25519", imported, blob, message);
  } catch (error) {
    if (error.name === "NotSupportedError") return null;
    throw error;
  }
}

async function verifyNote(origin, text, keys, say) {
  const note = parseNote(text);
  check(note.origin === origin, `the checkpoint is that of ${note.origin}`);
  let own = false;
  for (const signature of note.signatures) {
    const key = keys.find((each) => each.name === signature.name && each.id === signature.id);
    if (!key) continue;
    const holds = await signed(note, signature, key);
    check(holds !== false, `the signature of ${key.name} does not hold`);
    own = own || key.name === origin;
    say(holds === null ? `${key.name}: not checked, this browser has no Ed25519` : `${key.name} signed ${note.size.toLocaleString("en")} entries`, holds === null ? "warn" : "good");
  }
  check(own, "the log's own signature is missing");
  return note;
}

async function verifyEvent(event, mid, notes, before) {
  const note = notes[event.log];
  check(note && note.size === event.size, "its checkpoint is not here");
  const leaf = JSON.parse(event.leaf);
  check(leaf.mid === mid && leaf.k === event.k && leaf.kind === event.kind && leaf.at === event.at, "the leaf is of another event");
  const hash = await sha256(Uint8Array.of(0), utf8.encode(event.leaf));
  const root = await rootOf(hash, event.index, event.size, event.proof.map(bytes));
  check(hex(root) === hex(bytes(note.root)), "it does not lead to the root that was signed");
  if (before && before.k === event.k - 1 && leaf.prev) check(leaf.prev === before.hash, "it follows another event");
  return { k: event.k, hash: hex(hash) };
}

async function verify(place) {
  const list = document.createElement("ul");
  list.className = "timeline";
  const verdict = document.createElement("p");
  verdict.setAttribute("role", "status");
  const say = (text, tone) => {
    const item = document.createElement("li");
    item.className = tone;
    item.textContent = text;
    list.append(item);
  };
  place.replaceChildren(verdict, list);
  let what = "the document";
  try {
    check(window.crypto && crypto.subtle, "this page was not loaded over TLS, so the browser offers no cryptography");
    const answer = await fetch(place.dataset.proof);
    check(answer.ok, `the server answered ${answer.status}`);
    const proof = await answer.json();
    check(proof.format === "heliograph-proof@v1" && proof.id === place.dataset.message, "it is no proof of this message");
    const keys = await Promise.all(Object.values(proof.keys).map(parseKey));
    const notes = {};
    for (const [origin, text] of Object.entries(proof.checkpoints)) {
      what = `the checkpoint of ${origin}`;
      notes[origin] = await verifyNote(origin, text, keys, say);
    }
    let before = null;
    for (const event of proof.events) {
      what = `event ${event.k} (${event.kind})`;
      before = await verifyEvent(event, proof.id, notes, before);
      say(`${event.kind}: entry ${event.index.toLocaleString("en")} of ${event.log}`, "good");
    }
    const ordinals = proof.events.map((event) => event.k).concat(proof.pending).sort((a, b) => a - b);
    what = "the events";
    check(proof.events.length && ordinals.every((k, at) => k === at), "one is missing or twice");
    verdict.textContent = proof.complete ? "Verified: every event of the message is in a signed log." : "Verified, as far as the events are in a signed log.";
    verdict.className = "said";
  } catch (error) {
    verdict.textContent = `Not proven: ${what}: ${error.message}.`;
    verdict.className = "problem";
    say(error.message, "bad");
  }
}

for (const place of document.querySelectorAll("[data-proof]")) verify(place);
