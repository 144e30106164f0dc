// What the Node clients' scripts share: they call, note what they got, and print it as JSON.

export class Played {
  #answers = {};
  #errors = {};
  #failures = {};

  constructor(dump) {
    this.known = JSON.parse(process.argv[2]);
    this.dump = dump;
  }

  /** Call, and note the answer; what goes wrong is noted too, and the next calls go on. */
  async call(name, ask) {
    try {
      const answer = await ask();
      this.#answers[name] = this.dump(answer) ?? null;
      return answer;
    } catch (error) {
      this.#failures[name] = `${error.constructor.name}: ${error.rawValue ?? ""} ${error.cause ?? error}`.slice(0, 2000);
      return {};
    }
  }

  /** Call what the sidecar refuses, and note the error. */
  async refused(name, ask) {
    try {
      this.#failures[name] = `it was not refused: ${JSON.stringify(await ask())}`;
    } catch (error) {
      const { statusCode: status, retryAfter } = error;
      const detail = error.error ?? error.data$;
      this.#errors[name] = { class: error.constructor.name, status, retry_after: retryAfter, detail };
    }
  }

  /** Print everything. */
  end() {
    console.log(JSON.stringify({ answers: this.#answers, errors: this.#errors, failures: this.#failures }));
  }
}

/** Name the fields as they are named on the wire. */
export function snakeCased(value) {
  if (Array.isArray(value)) return value.map(snakeCased);
  if (value === null || typeof value !== "object" || value instanceof Date) return value;
  const named = ([name, part]) => [name.replace(/([a-z0-9])([A-Z])/g, "$1_$2").toLowerCase(), snakeCased(part)];
  return Object.fromEntries(Object.entries(value).map(named));
}
