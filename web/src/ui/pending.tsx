import type { Ask, Asks } from "../asks.ts";
import { useValue } from "../hooks.ts";
import { t } from "../i18n.ts";
import { Button, Countdown } from "./parts.tsx";

/** The requests that are under way, each with a countdown to its repetition. */
export function Pending<T>({
  asks,
  name,
  only,
}: {
  asks: Asks<T>;
  name: (ask: Ask) => string;
  only?: (ask: Ask) => boolean;
}) {
  const pending = useValue(asks.pending);
  return (
    <div aria-live="polite">
      {pending
        .filter((ask) => !only || only(ask))
        .map((ask) => (
          <section key={ask.id} class="pending" data-ask={ask.waiting?.why ?? "sending"}>
            {ask.waiting ? (
              <Countdown since={ask.waiting.since} until={ask.waiting.until} />
            ) : (
              <span class="dots" aria-hidden="true" />
            )}
            <div>
              <p class="over">{name(ask)}</p>
              {ask.waiting ? (
                <>
                  <h2>{t(ask.waiting.why === "busy" ? "busyTitle" : "lostTitle")}</h2>
                  <p>{t(ask.waiting.why === "busy" ? "busyText" : "lostText")}</p>
                  <Button kind="quiet" onClick={() => asks.stop(ask.id)}>
                    {t("stopTrying")}
                  </Button>
                </>
              ) : (
                <h2>{t("sending")}</h2>
              )}
            </div>
          </section>
        ))}
    </div>
  );
}
