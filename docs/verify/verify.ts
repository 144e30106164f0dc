// Verifies Almoner's offline licences, without a network. Copy this file; it needs nothing but WebCrypto with Ed25519
// (Node 20, and browsers of 2025).

export interface Licence {
  version: 1; kid: string; id: string; license_key_id: string; display_key: string;
  benefit: string; benefit_id: string; description: string;
  customer_id: string; external_customer_id: string | null; organization_id: string | null;
  activation_id: string | null; fingerprint: string | null;
  issued_at: string; valid_until: string; paid_through: string | null;
}

export interface Keys { keys: { kid: string; public_key: string }[] }

export type Reason = "malformed" | "unknown_key" | "bad_signature" | "clock_set_back" | "not_yet_valid" | "expired"
  | "fingerprint_mismatch";

export class LicenceError extends Error {
  constructor(readonly reason: Reason) { super(reason); }
}

const TOLERANCE = 5 * 60_000;

// Returns what the licence says, or throws a LicenceError; a TypeError for an invalid Date. `keys` is what
// /.well-known/almoner-keys.json answered; `fingerprint` is this device's; `lastSeen` is the latest time that the app
// has ever seen.
export async function verify(
  text: string, keys: Keys, now: Date, fingerprint: string | null = null, lastSeen: Date | null = null,
): Promise<Licence> {
  if (Number.isNaN(now.getTime()) || Number.isNaN(lastSeen?.getTime())) throw new TypeError("not a time");
  const [head, payload, signature, ...more] = text.replace(/^[ \t\r\n]+|[ \t\r\n]+$/g, "").split(".");
  const given = decoded(signature);
  const read = decoded(payload);
  if (head !== "almoner1" || more.length || !read || given?.length !== 64) throw new LicenceError("malformed");
  let said: Licence;
  try {
    said = JSON.parse(new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(read));
  } catch {
    throw new LicenceError("malformed");
  }
  if (typeof said?.kid !== "string") throw new LicenceError("malformed");
  const known = keys.keys.find((key) => key.kid === said.kid);
  if (!known) throw new LicenceError("unknown_key");
  const key = await crypto.subtle.importKey("raw", decoded(known.public_key)!, "Ed25519", false, ["verify"]);
  const signed = new TextEncoder().encode(`${head}.${payload}`);
  if (!(await crypto.subtle.verify("Ed25519", key, given, signed))) throw new LicenceError("bad_signature");
  if (said.version !== 1) throw new LicenceError("malformed");
  if (lastSeen && now.getTime() < lastSeen.getTime() - TOLERANCE) throw new LicenceError("clock_set_back");
  if (!(now.getTime() >= Date.parse(said.issued_at) - TOLERANCE)) throw new LicenceError("not_yet_valid");
  if (!(now.getTime() < Date.parse(said.valid_until))) throw new LicenceError("expired");
  if (said.fingerprint !== null && said.fingerprint !== fingerprint) throw new LicenceError("fingerprint_mismatch");
  return said;
}

// Decodes base64url; undefined for all that would not be written so.
function decoded(part: string | undefined) {
  if (!part || !/^[A-Za-z0-9_-]+$/.test(part) || part.length % 4 === 1) return undefined;
  const data = atob(part.replaceAll("-", "+").replaceAll("_", "/"));
  const same = btoa(data).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
  return same === part ? Uint8Array.from(data, (letter) => letter.charCodeAt(0)) : undefined;
}
