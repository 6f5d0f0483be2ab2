/** What the page has to be told where it is installed; /config.json. Nothing in it is secret. */
export interface Config {
  issuer: string;
  authorization_endpoint: string;
  token_endpoint: string;
  /** Where to sign out at the provider, if it has such a place. */
  end_session_endpoint?: string;
  client_id: string;
  /** What to ask the provider for; "openid" when it is not set. */
  scope?: string;
  /** The provider's name for who may call (Auth0's "audience"), if it wants to be asked for it. */
  audience?: string;
  /** The claims that hold roles and the manager's hospital; "roles" and "hospital" when not set. */
  roles_claim?: string;
  hospital_claim?: string;
}

type Endpoints = Pick<Config, "authorization_endpoint" | "token_endpoint" | "end_session_endpoint">;

/** Reads it; where it does not tell the endpoints, the issuer's description does (OpenID Connect Discovery). */
export async function readConfig(): Promise<Config> {
  const config = await read<Omit<Config, keyof Endpoints> & Partial<Endpoints>>("/config.json");
  const { authorization_endpoint, token_endpoint } = config;
  if (authorization_endpoint && token_endpoint) return { ...config, authorization_endpoint, token_endpoint };
  const found = await read<Endpoints>(`${config.issuer.replace(/\/$/, "")}/.well-known/openid-configuration`);
  return {
    ...config,
    authorization_endpoint: found.authorization_endpoint,
    token_endpoint: found.token_endpoint,
    ...(found.end_session_endpoint ? { end_session_endpoint: found.end_session_endpoint } : {}),
  };
}

async function read<T>(url: string): Promise<T> {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url}: ${response.status}`);
  return (await response.json()) as T;
}
