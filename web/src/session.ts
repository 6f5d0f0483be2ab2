import { Code, ConnectError } from "@connectrpc/connect";
import type { Config } from "./config.ts";
import { Value } from "./value.ts";

export type Role = "customer" | "manager" | "operator";
const ROLES: readonly Role[] = ["customer", "manager", "operator"];

export interface Person {
  subject: string;
  roles: readonly Role[];
  /** The one that a manager manages; empty for others. */
  hospital: string;
}

/** "expired": the person's token is no longer valid and could not be renewed, but the screen is still theirs. */
export type State = { is: "out" } | { is: "in"; person: Person } | { is: "expired"; person: Person };

interface Tokens {
  access: string;
  refresh?: string;
  /** The provider's own word on who signed in. The page shows it when it signs them out, and for nothing else. */
  id?: string;
  /** In milliseconds since 1970, by this device's clock. */
  expires: number;
}

/** The token endpoint's answer. */
interface Answer {
  access_token: string;
  refresh_token?: string;
  id_token?: string;
  expires_in?: number;
}

/** Kept in the tab's storage while the person is away at the provider. */
interface Away {
  state: string;
  /** Comes back in the id_token. Some providers refuse a sign-in without it. */
  nonce: string;
  verifier: string;
  /** Where to go on afterwards. */
  then: string;
}

const AWAY = "sign-in";
// Says that this tab was signed in, so that a page that is loaded again goes to the provider by itself.
const WAS_IN = "signed-in";
// The state of a sign-in in a window of its own begins like this: its code is handed to the page that opened it.
const BESIDE = "beside.";
const EARLY = 30_000;
// Not sooner, however short tokens live, as they do near the end of a session at the provider.
const SOONEST = 5000;

/** The provider has said no; whoever does not reach it may try again. */
class Denied extends Error {}

/**
 * OpenID Connect's authorization code flow with PKCE. Tokens are in memory alone: whatever can read the tab's storage
 * finds no token there.
 */
export class Session {
  readonly state = new Value<State>({ is: "out" });
  #tokens: Tokens | null = null;
  #renewing: Promise<void> | null = null;
  #timer = 0;
  #window: Window | null = null;
  readonly #codes = new BroadcastChannel("sign-in");
  readonly #config: Config;

  constructor(config: Config) {
    this.#config = config;
    this.#codes.onmessage = ({ data }) => void this.#fromBeside(data as { code?: string; state: string });
  }

  /**
   * A token that is valid now. Waits for the person to sign in again when theirs has expired. Fails as a lost connection
   * does while it cannot be renewed because the provider does not answer.
   */
  async token(): Promise<string> {
    if (this.#tokens && this.#tokens.expires <= Date.now()) await this.#renew();
    while (this.state.get().is !== "in" || !this.#tokens) {
      await new Promise<void>((resolve) => {
        const stop = this.state.subscribe(() => {
          stop();
          resolve();
        });
      });
    }
    return this.#tokens.access;
  }

  /** The gateway has refused this token. Fails as `token` does. */
  async refused(token: string): Promise<void> {
    if (this.#tokens?.access === token) await this.#renew();
  }

  /** Leaves for the provider; the page is loaded again afterwards. */
  async signIn(then: string, hint?: string): Promise<void> {
    location.assign(await this.#request("", then, hint));
  }

  /** Signs in again in a window of its own, so that nothing on this screen is lost. To be called on a click. */
  signInBeside(): void {
    // The window is opened before anything is waited for: browsers allow that on a click alone.
    this.#window = window.open("about:blank", "_blank", "popup,width=480,height=640");
    const now = this.state.get();
    void this.#request(
      this.#window ? BESIDE : "", // some browsers open none
      location.pathname + location.search,
      now.is === "out" ? undefined : now.person.subject,
    ).then((url) => {
      if (this.#window) this.#window.location.href = url;
      else location.assign(url);
    });
  }

  signOut(): void {
    const { end_session_endpoint: end, client_id } = this.#config;
    const id = this.#tokens?.id;
    sessionStorage.removeItem(WAS_IN);
    clearTimeout(this.#timer);
    this.#tokens = null;
    // Nothing may be left on this screen: browsers may keep it to go back to.
    this.state.set({ is: "out" });
    if (!end) {
      location.assign("/");
      return;
    }
    const url = new URL(end, location.href);
    url.searchParams.set("client_id", client_id);
    url.searchParams.set("post_logout_redirect_uri", `${location.origin}/`);
    // Without it, providers ask whether one really wants to sign out, and many do not lead back to the page.
    if (id) url.searchParams.set("id_token_hint", id);
    location.assign(url);
  }

  /** The page was loaded: goes on with a sign-in, if this is one's end. Returns where to go then; null: stay. */
  async begin(): Promise<string | null> {
    if (location.pathname !== "/signed-in") {
      const was = sessionStorage.getItem(WAS_IN);
      if (was !== null && location.pathname !== "/") {
        await this.signIn(location.pathname + location.search, was);
        await new Promise(() => {}); // the page is about to be left
      }
      return null;
    }
    const query = new URLSearchParams(location.search);
    const state = query.get("state") ?? "";
    if (state.startsWith(BESIDE)) {
      this.#codes.postMessage({ code: query.get("code") ?? undefined, state });
      window.close();
      return "/";
    }
    const away = JSON.parse(sessionStorage.getItem(AWAY) ?? "null") as Away | null;
    sessionStorage.removeItem(AWAY);
    sessionStorage.removeItem(WAS_IN);
    if (query.has("error")) throw new Error(`sign-in: ${query.get("error_description") ?? query.get("error")}`);
    const code = query.get("code");
    // A code that this tab has not asked for may be somebody else's: signing in with it would show their bookings.
    if (!code || !away || away.state !== state) return "/";
    await this.#redeem(code, away);
    return away.then;
  }

  async #fromBeside({ code, state }: { code?: string; state: string }): Promise<void> {
    const away = JSON.parse(sessionStorage.getItem(AWAY) ?? "null") as Away | null;
    if (!code || away?.state !== state) return;
    sessionStorage.removeItem(AWAY);
    this.#window?.close();
    await this.#redeem(code, away);
  }

  async #redeem(code: string, away: Away): Promise<void> {
    const answer = await this.#exchange({
      grant_type: "authorization_code",
      code,
      code_verifier: away.verifier,
      redirect_uri: this.#back(),
    });
    if (answer.id_token && claimsOf(answer.id_token).nonce !== away.nonce) throw new Error("sign-in: wrong nonce");
    this.#accept(answer);
  }

  #back(): string {
    return `${location.origin}/signed-in`;
  }

  async #request(prefix: string, then: string, hint?: string): Promise<string> {
    const { authorization_endpoint, client_id, scope, audience } = this.#config;
    const away: Away = { state: prefix + random(16), nonce: random(16), verifier: random(32), then };
    sessionStorage.setItem(AWAY, JSON.stringify(away));
    const digest = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(away.verifier));
    const url = new URL(authorization_endpoint, location.href);
    const asked = {
      response_type: "code",
      client_id,
      redirect_uri: this.#back(),
      scope: scope ?? "openid",
      state: away.state,
      nonce: away.nonce,
      code_challenge: base64url(new Uint8Array(digest)),
      code_challenge_method: "S256",
      ui_locales: document.documentElement.lang,
      ...(audience ? { audience } : {}),
      ...(hint ? { login_hint: hint } : {}),
    };
    for (const [name, value] of Object.entries(asked)) url.searchParams.set(name, value);
    return url.href;
  }

  async #exchange(form: Record<string, string>): Promise<Answer> {
    const response = await fetch(this.#config.token_endpoint, {
      method: "POST",
      body: new URLSearchParams({ client_id: this.#config.client_id, ...form }),
    });
    const { status, ok } = response;
    if (status >= 400 && status < 500 && status !== 429) throw new Denied(`sign-in: ${status}`);
    if (!ok) throw new Error(`sign-in: ${status}`);
    return (await response.json()) as Answer;
  }

  #accept(answer: Answer): void {
    const claims = claimsOf(answer.access_token);
    const roles = claims[this.#config.roles_claim ?? "roles"];
    const person: Person = {
      subject: String(claims.sub ?? ""),
      roles: ROLES.filter((role) => Array.isArray(roles) && roles.includes(role)),
      hospital: String(claims[this.#config.hospital_claim ?? "hospital"] ?? ""),
    };
    const before = this.state.get();
    sessionStorage.setItem(WAS_IN, person.subject);
    if (before.is !== "out" && before.person.subject !== person.subject) {
      // Somebody else: nothing of the person before may stay on the screen, or be sent with this token.
      location.assign("/");
      return;
    }
    // By how long it lives, since this device's clock may be wrong.
    const lives = answer.expires_in ?? Number(claims.exp ?? 0) - Number(claims.iat ?? Date.now() / 1000);
    const refresh = answer.refresh_token ?? this.#tokens?.refresh;
    const id = answer.id_token ?? this.#tokens?.id;
    this.#tokens = {
      access: answer.access_token,
      expires: Date.now() + lives * 1000,
      ...(refresh ? { refresh } : {}),
      ...(id ? { id } : {}),
    };
    this.state.set({ is: "in", person });
    this.#renewInTime(this.#tokens.expires);
  }

  #renewInTime(expires: number): void {
    clearTimeout(this.#timer);
    // setTimeout takes 31 bits; a token that lives longer is looked at again then.
    const wait = Math.min(Math.max(SOONEST, expires - Date.now() - (this.#tokens?.refresh ? EARLY : 0)), 2 ** 31 - 1);
    this.#timer = window.setTimeout(() => {
      if (Date.now() + EARLY < expires) this.#renewInTime(expires);
      else this.#renew().catch(() => this.#renewInTime(expires));
    }, wait);
  }

  #renew(): Promise<void> {
    this.#renewing ??= this.#tryToRenew().finally(() => {
      this.#renewing = null;
    });
    return this.#renewing;
  }

  async #tryToRenew(): Promise<void> {
    const refresh = this.#tokens?.refresh;
    if (refresh) {
      try {
        const answer = await this.#exchange({ grant_type: "refresh_token", refresh_token: refresh });
        if (this.#tokens) this.#accept(answer); // else the person has signed out meanwhile
        return;
      } catch (error) {
        if (!(error instanceof Denied))
          throw new ConnectError("the provider does not answer", Code.Unavailable, undefined, undefined, error);
        // Asked to sign in again below, as without a refresh token.
      }
    }
    const now = this.state.get();
    this.#tokens = null;
    if (now.is === "in") this.state.set({ is: "expired", person: now.person });
  }
}

function random(bytes: number): string {
  return base64url(crypto.getRandomValues(new Uint8Array(bytes)));
}

function base64url(bytes: Uint8Array): string {
  return btoa(String.fromCharCode(...bytes))
    .replaceAll("+", "-")
    .replaceAll("/", "_")
    .replace(/=+$/, "");
}

/** What the token says. The page only chooses by it what to show: whether it is true, the gateway checks. */
function claimsOf(token: string): Record<string, unknown> {
  const payload = token.split(".")[1] ?? "";
  const bytes = Uint8Array.from(atob(payload.replaceAll("-", "+").replaceAll("_", "/")), (char) => char.charCodeAt(0));
  return JSON.parse(new TextDecoder().decode(bytes)) as Record<string, unknown>;
}
