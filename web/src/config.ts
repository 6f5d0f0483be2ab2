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

export async function readConfig(): Promise<Config> {
  const response = await fetch("/config.json");
  if (!response.ok) throw new Error(`/config.json: ${response.status}`);
  return (await response.json()) as Config;
}
