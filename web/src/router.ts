import { Value } from "./value.ts";

export interface Place {
  path: string;
  query: URLSearchParams;
}

const here = (): Place => ({ path: location.pathname, query: new URLSearchParams(location.search) });

export const place = new Value<Place>(here());

addEventListener("popstate", () => place.set(here()));

/** Goes to another screen of this page. */
export function go(href: string, how: { replace?: boolean } = {}): void {
  if (how.replace) history.replaceState(null, "", href);
  else history.pushState(null, "", href);
  place.set(here());
  if (!how.replace) scrollTo(0, 0);
}

/** The parts that a pattern like /customer/reservations/:id finds in a path; null when it is another path. */
export function match(pattern: string, path: string): Record<string, string> | null {
  const wanted = pattern.split("/");
  const parts = path.replace(/\/$/, "").split("/");
  if (wanted.length !== parts.length) return null;
  const found: Record<string, string> = {};
  for (const [index, part] of wanted.entries()) {
    const given = parts[index] ?? "";
    if (part.startsWith(":")) found[part.slice(1)] = decoded(given);
    else if (part !== given) return null;
  }
  return found;
}

// Whoever types an address may type what stands for no text.
function decoded(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}
