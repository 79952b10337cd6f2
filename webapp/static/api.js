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

/** The JSON behind `path`, or null for an empty answer. */
export async function call(method, path, body) {
  const options = { method, headers: { Accept: "application/json" } };
  if (body !== undefined) {
    options.body = JSON.stringify(body);
    options.headers["Content-Type"] = "application/json";
  }
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
