/** The page's HTTP calls. Every error that comes out is an ApiError with a sentence for people. */

import { t, told } from "./i18n.js";

/** What the server (or the lack of one) said: `code` for programs, `message` for people. */
export class ApiError extends Error {
  constructor({ code, message, status }) {
    super(told({ code, message }));
    this.code = code;
    this.status = status;
  }
}

const SMALL = 3000; // characters; browsers let some 64 kB in all outlive their page

/** The JSON behind `path`, or null for an empty answer. What is written arrives also if the page is left at once. */
export async function call(method, path, body) {
  const text = body === undefined ? undefined : JSON.stringify(body);
  const options = { method, body: text, headers: { Accept: "application/json" }, keepalive: method !== "GET" && (text?.length ?? 0) < SMALL };
  if (text) options.headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new ApiError({ code: "offline", message: t("The server cannot be reached. Check your connection and try again."), status: 0 });
  }
  if (response.status === 204) return null;
  const answer = await response.json().catch(() => null);
  if (response.ok && answer) return answer;
  throw new ApiError(
    answer?.error ?? { code: "internal", message: t("The server answered with status {status}. Please try again.", { status: response.status }), status: response.status },
  );
}
