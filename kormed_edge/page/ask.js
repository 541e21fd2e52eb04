// The service, as the page calls it.

/** An answer that did not come: `status` 0 when the service cannot be reached. */
export class AskError extends Error {
  constructor(status, code, message, retryAfter) {
    super(message);
    Object.assign(this, { status, code, retryAfter });
  }
}

const refused = async (response) => {
  const { error } = await response.json().catch(() => ({}));
  const seconds = Number(response.headers.get("Retry-After")) || 0;
  return new AskError(response.status, error?.code ?? null, error?.message ?? "", seconds);
};

const call = async (path, key, options = {}) => {
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store", credentials: "omit" });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new AskError(0, "offline", "", 0);
  }
  if (!response.ok) throw await refused(response);
  return response;
};

export const getStatus = async (key, signal) => (await call("v1/status", key, { signal })).json();

/** {status}: "ok", "loading", or "offline" when nothing answers; {guidelines} once it is ok. */
export const getHealth = async () => {
  try {
    return await (await call("healthz")).json();
  } catch {
    return { status: "offline" };
  }
};

const events = async function* (body, signal) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    let read;
    try {
      read = await reader.read();
    } catch (error) {
      if (signal.aborted) throw error;
      throw new AskError(0, "interrupted", "", 0);
    }
    if (read.done) return;
    const parts = (rest + read.value).split("\n\n");
    rest = parts.pop();
    yield* parts.map((part) => part.replace(/^data: /, ""));
  }
};

const json = (body) => ({
  method: "POST",
  headers: { "Content-Type": "application/json" },
  body: JSON.stringify(body),
});

/** Send {request_id, verdict, comment}; it returns once that is on the service's disk. */
export const sendFeedback = async (given, key) => {
  const response = await call("v1/feedback", key, json(given));
  const stored = await response.json().catch(() => null);
  if (!stored) throw new AskError(0, "interrupted", "", 0);
  if (stored.id === null) throw new AskError(503, "audit_unavailable", "", 0); // the log lost it
};

/** Ask {question, guidelines?}; `onEvent` gets {delta, …} as they come, the first with request_id,
 * guidance and passages, one with `replaced`. The whole answer is returned. */
export const ask = async (asked, { key, signal, onEvent }) => {
  const response = await call("v1/ask", key, { ...json({ ...asked, stream: true }), signal });
  let whole = null;
  for await (const text of events(response.body, signal)) {
    if (text === "[DONE]") break;
    const event = JSON.parse(text);
    if (event.error) throw new AskError(500, event.error.code, event.error.message, 0);
    if ("delta" in event) onEvent(event);
    else whole = event;
  }
  if (!whole) throw new AskError(0, "interrupted", "", 0);
  return whole;
};
