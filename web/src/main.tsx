import { render } from "preact";
import { signedBy } from "./api.ts";
import { App, Broken } from "./app.tsx";
import { readConfig } from "./config.ts";
import { language } from "./i18n.ts";
import { go } from "./router.ts";
import { Session } from "./session.ts";
import "./styles/main.css";

const root = document.getElementById("app");

async function start(): Promise<void> {
  document.documentElement.lang = language.get();
  const session = new Session(await readConfig());
  signedBy(session);
  let failed = false;
  try {
    const then = await session.begin();
    if (then !== null) go(then, { replace: true });
  } catch (error) {
    console.error(error);
    failed = true;
    go("/", { replace: true });
  }
  if (root) render(<App session={session} failed={failed} />, root);
}

start().catch((error: unknown) => {
  console.error(error);
  if (root) render(<Broken />, root);
});
