import type { ComponentType } from "preact";
import { useEffect, useState } from "preact/hooks";
import { Customer } from "./customer/customer.tsx";
import { useValue } from "./hooks.ts";
import { choose, type Key, language, t } from "./i18n.ts";
import { go, place } from "./router.ts";
import type { Role, Session, State } from "./session.ts";
import { Button, Dialog, Empty, Heading, Link, Loading, Problem } from "./ui/parts.tsx";
import { Toast } from "./ui/toast.tsx";
import { refusal } from "./refusal.ts";

type SignedIn = Extract<State, { person: unknown }>;
export type Area = ComponentType<{ person: SignedIn["person"] }>;

const RELOADED = "reloaded";

/**
 * Whether a part is missing because the page was updated since it was loaded, so that loading it anew helps. True once:
 * a page that is incomplete even then does not load itself for ever.
 */
async function isAnotherVersion(): Promise<boolean> {
  if (sessionStorage.getItem(RELOADED)) return false;
  const answers = await fetch("/index.html").catch(() => null); // not while the connection is lost
  if (!answers?.ok) return false;
  sessionStorage.setItem(RELOADED, "yes");
  return true;
}

// Phones load the customer's screens at once; the others come when they are needed.
const later = (load: () => Promise<Area>): Area =>
  function Later(props) {
    const [loaded, setLoaded] = useState<{ area?: Area; failed?: unknown }>({});
    useEffect(() => {
      load().then(
        (area) => {
          sessionStorage.removeItem(RELOADED);
          setLoaded({ area });
        },
        async (failed: unknown) => {
          if (await isAnotherVersion()) location.reload();
          else setLoaded({ failed });
        },
      );
    }, []);
    if (loaded.failed) return <Problem refused={refusal(loaded.failed)} onAgain={() => location.reload()} />;
    return loaded.area ? <loaded.area {...props} /> : <Loading />;
  };

const AREAS: Record<Role, { name: Key; area: Area }> = {
  customer: { name: "customerArea", area: Customer },
  manager: { name: "managerArea", area: later(async () => (await import("./manager/manager.tsx")).Manager) },
  operator: { name: "operatorArea", area: later(async () => (await import("./operator/operator.tsx")).Operator) },
};

export function App({ session, failed }: { session: Session; failed: boolean }) {
  const state = useValue(session.state);
  const lang = useValue(language);
  const { path } = useValue(place);
  useEffect(() => {
    document.documentElement.lang = lang;
  }, [lang]);
  const roles = state.is === "out" ? [] : allowed(state.person.roles);
  const role = (["customer", "manager", "operator"] as const).find(
    (each) => path === `/${each}` || path.startsWith(`/${each}/`),
  );
  useEffect(() => {
    if (path === "/" && roles[0]) go(`/${roles[0]}`, { replace: true });
  }, [path, roles[0]]);

  return (
    <div class={`page ${role ?? ""}`}>
      <a class="skip" href="#content">
        {t("skip")}
      </a>
      <header class="bar">
        <Link href="/" class="brand">
          <svg viewBox="0 0 32 32" aria-hidden="true">
            <rect width="32" height="32" rx="9" />
            <path d="M16 8v16M8 16h16" />
          </svg>
          <span>{t("brand")}</span>
        </Link>
        {roles.length > 1 && (
          <nav aria-label={t("areas")}>
            {roles.map((each) => (
              <Link key={each} href={`/${each}`} aria-current={each === role ? "page" : undefined}>
                {t(AREAS[each].name)}
              </Link>
            ))}
          </nav>
        )}
        <div class="tools">
          <button
            type="button"
            class="button quiet"
            lang={lang === "ko" ? "en" : "ko"}
            onClick={() => choose(lang === "ko" ? "en" : "ko")}
          >
            {t("language")}
          </button>
          {state.is !== "out" && (
            <button type="button" class="button quiet" title={state.person.subject} onClick={() => session.signOut()}>
              {t("signOut")}
            </button>
          )}
        </div>
      </header>
      <main id="content" tabIndex={-1}>
        <Content session={session} state={state} role={role} failed={failed} path={path} />
      </main>
      <Toast />
      {state.is === "expired" && (
        <Dialog title={t("expiredTitle")}>
          <p>{t("expiredText")}</p>
          <div class="actions">
            <Button onClick={() => session.signOut()}>{t("signOut")}</Button>
            <Button kind="main" onClick={() => session.signInBeside()}>
              {t("signInAgain")}
            </Button>
          </div>
        </Dialog>
      )}
    </div>
  );
}

/** An operator may do what a manager does, at every hospital. */
function allowed(roles: readonly Role[]): readonly Role[] {
  return roles.includes("operator") && !roles.includes("manager") ? [...roles, "manager"] : roles;
}

function Content({
  session,
  state,
  role,
  failed,
  path,
}: {
  session: Session;
  state: State;
  role: Role | undefined;
  failed: boolean;
  path: string;
}) {
  if (state.is === "out")
    return (
      <Welcome
        failed={failed}
        onSignIn={() => session.signIn(path === "/signed-in" ? "/" : location.pathname + location.search)}
      />
    );
  if (!state.person.roles.length) return <Empty screen title={t("noRole")} />;
  if (path === "/") return <Loading />;
  if (!role || !allowed(state.person.roles).includes(role)) {
    return (
      <Empty screen title={t("notFound")}>
        <Link href="/" class="button plain">
          {t("home")}
        </Link>
      </Empty>
    );
  }
  const { area: Shown } = AREAS[role];
  return <Shown person={state.person} />;
}

function Welcome({ failed, onSignIn }: { failed: boolean; onSignIn: () => Promise<void> }) {
  return (
    <section class="welcome">
      <Heading focus={false}>{t("welcome")}</Heading>
      <p class="lead">{t("welcomeText")}</p>
      {failed && (
        <p class="notice bad" role="alert">
          {t("signInFailed")}
        </p>
      )}
      <Button kind="main" class="large" onClick={onSignIn}>
        {t("signIn")}
      </Button>
      <p class="hint">{t("signInWhy")}</p>
    </section>
  );
}

/** Shown when not even the configuration could be read. */
export function Broken() {
  return (
    <main class="page">
      <Empty screen title={t("startFailed")}>
        <Button onClick={() => location.reload()}>{t("loadAgain")}</Button>
      </Empty>
    </main>
  );
}
