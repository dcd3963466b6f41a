import java.lang.reflect.Method;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Collection;
import java.util.List;
import java.util.Map;
import java.util.function.Supplier;

/**
 * One OpenSearch node on loopback with its modules: StartOpenSearch FOLDER HTTP_PORT TRANSPORT_PORT NAME=VALUE...
 *
 * Its classes are found by name, so that this one can be compiled by a JDK that is older than the server.
 */
public class StartOpenSearch {
    private static final String[] MODULES = {
        "org.opensearch.analysis.common.CommonAnalysisModulePlugin",
        "org.opensearch.index.mapper.MapperExtrasModulePlugin",
        "org.opensearch.index.reindex.ReindexModulePlugin",
        "org.opensearch.ingest.common.IngestCommonModulePlugin",
        "org.opensearch.join.ParentJoinModulePlugin",
        "org.opensearch.painless.PainlessModulePlugin",
        "org.opensearch.percolator.PercolatorModulePlugin",
        "org.opensearch.script.mustache.MustacheModulePlugin",
        "org.opensearch.transport.Netty4ModulePlugin",
    };

    public static void main(String[] args) throws Exception {
        Path folder = Path.of(args[0]).toAbsolutePath();
        List<Class<?>> modules = new ArrayList<>();
        for (String name : MODULES) {
            modules.add(Class.forName(name));
        }
        Class<?> settingsClass = Class.forName("org.opensearch.common.settings.Settings");
        Object settings = settingsClass.getMethod("builder").invoke(null);
        Method put = settings.getClass().getMethod("put", String.class, String.class);
        put.invoke(settings, "path.home", folder.toString());
        put.invoke(settings, "cluster.name", "fettler-tests");
        put.invoke(settings, "node.name", "node-1");
        put.invoke(settings, "discovery.type", "single-node");
        put.invoke(settings, "network.host", "127.0.0.1");
        put.invoke(settings, "http.port", args[1]);
        put.invoke(settings, "transport.port", args[2]);
        for (int at = 3; at < args.length; at++) {
            String[] setting = args[at].split("=", 2);
            put.invoke(settings, setting[0], setting[1]);
        }
        Object built = settings.getClass().getMethod("build").invoke(settings);
        Supplier<String> nodeName = () -> "node-1";
        Object environment = Class.forName("org.opensearch.node.InternalSettingsPreparer")
            .getMethod("prepareEnvironment", settingsClass, Map.class, Path.class, Supplier.class)
            .invoke(null, built, Map.of(), folder.resolve("config"), nodeName);
        Object node = Class.forName("org.codelibs.opensearch.runner.node.OpenSearchRunnerNode")
            .getConstructor(Class.forName("org.opensearch.env.Environment"), Collection.class)
            .newInstance(environment, modules);
        node.getClass().getMethod("start").invoke(node);
        Thread.currentThread().join();
    }
}
